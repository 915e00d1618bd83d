"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

A chain of M links is written as ONE ordinary adapter of rank Σ rᵢ, since
`Σ sᵢ Bᵢ Aᵢ = [s₁B₁ … s_M B_M] · [A₁; …; A_M]`. PEFT, vLLM and whatever else reads PEFT adapters load it.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lorachains.bank import LoraBank
from lorachains.chain import Chain
from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FINGERPRINT = "base_fingerprint.txt"


def save_adapter(chain: Chain, folder: Path, base_name: str, base_fingerprint: str, expert: int = 0) -> int:
    """Writes one adapter's whole chain, ledger and live link, as a PEFT adapter.

    Ranks whose `B` is zero in all layers add nothing and are left out, unless there are no others: a live link that was
    never trained, or a link that only other adapters of the chain have. A chain that was merged
    into bfloat16 weights is written as it was learned: on the original base it gives what the merge would have without
    its rounding.

    Args:
        base_name: what `from_pretrained` is to load as the base (PEFT's `base_model_name_or_path`).
        base_fingerprint: of the base's weights, so that a wrong base is noticed at loading.

    Returns:
        The rank of the adapter written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = [_columns(bank, expert) for bank in chain.banks.values()]
    kept = torch.stack([(b != 0).any(0) for _, b, _, _ in columns]).any(0)
    if not kept.any():
        kept[-chain.rank :] = True
    columns = [(a[kept], b[:, kept], scale[kept], bias) for a, b, scale, bias in columns]
    scales = {float(s) for _, _, scale, _ in columns for s in scale}
    common = scales.pop() if len(scales) == 1 else 1.0
    tensors = {}
    for name, (a, b, scale, bias) in zip(chain.banks, columns, strict=True):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b * (scale / common)
        if bias is not None:
            tensors[f"{PREFIX}{name}.lora_B.bias"] = bias / common
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    rank = columns[0][0].shape[0]
    config = replace(
        chain.config, r=rank, lora_alpha=_whole(common * rank), use_rslora=False,
        inference_mode=True, task_type="CAUSAL_LM", base_model_name_or_path=base_name, init_lora_weights=True,
        fan_in_fan_out=any(isinstance(bank.base_layer, Conv1D) for bank in chain.banks.values()),
    )  # fmt: skip
    if isinstance(config.target_modules, set):  # whose order changes from process to process
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    (folder / FINGERPRINT).write_text(base_fingerprint + "\n")
    return rank


def read_config(folder: Path) -> LoraConfig:
    """The adapter's config.

    Raises:
        LorachainsError: there is no adapter, or it is no LoRA.
    """
    if not (folder / CONFIG).is_file():
        raise LorachainsError(
            f"{folder} holds no adapter: {CONFIG} is missing; give a folder that PEFT or lorachains wrote"
        )
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise LorachainsError(f"{folder / CONFIG} can't be read as a LoRA's: {str(error).splitlines()[0]}") from error
    if not isinstance(config, LoraConfig):
        raise LorachainsError(f"{folder} holds a {type(config).__name__}: only LoRA adapters can be loaded")
    return config


def check_base(folder: Path, base_name: str, base_fingerprint: str) -> None:
    """Refuses an adapter that was trained on other weights, and warns of one that only names another base.

    Raises:
        LorachainsError: names both bases.
    """
    known = folder / FINGERPRINT
    named = read_config(folder).base_model_name_or_path
    if not known.is_file() and named and named != base_name:
        log.warning(
            "%s names %s as its base, not %s: it fits only if the weights are the same", folder, named, base_name
        )
    if known.is_file() and (was := known.read_text().strip()) != base_fingerprint:
        raise LorachainsError(
            f"{folder} was trained on {named} (weights {was}), not on {base_name} (weights {base_fingerprint}): "
            "load it with its own base"
        )


@torch.no_grad()
def load_adapter(chain: Chain, folder: Path, expert: int = 0) -> None:
    """Reads a PEFT adapter into the live link of one of the chain's adapters, whose rank must be the same.

    Raises:
        LorachainsError: the file can't be read, or its layers, rank or shapes differ from the chain's.
    """
    tensors = _read_weights(folder / WEIGHTS)
    for name, bank in chain.banks.items():
        for key, parameter in (
            ("lora_A.weight", bank.lora_A),
            ("lora_B.weight", bank.lora_B),
            ("lora_B.bias", bank.lora_bias),
        ):
            if parameter is None:
                continue
            given = tensors.pop(f"{PREFIX}{name}.{key}", None)
            if given is None:
                raise LorachainsError(
                    f"{folder / WEIGHTS} has no {name}.{key}: it is of another model or of other target_modules"
                )
            if given.shape != parameter[expert].shape:
                raise LorachainsError(
                    f"{folder / WEIGHTS}: {name}.{key} has the shape {tuple(given.shape)}, the model needs "
                    f"{tuple(parameter[expert].shape)}: load the adapter with its own base model"
                )
            parameter[expert].copy_(given)
    if tensors:
        raise LorachainsError(
            f"{folder / WEIGHTS} has {len(tensors)} tensors that the model has no layer for, as {min(tensors)}: "
            "load it with its own base"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise LorachainsError(f"{path} is missing: the adapter folder is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise LorachainsError(f"{path} can't be read ({error}): it is damaged, copy or train it again") from error


def _columns(bank: LoraBank, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`A (Σ rank, in)`, `B (out, Σ rank)`, the scale of each rank, and the scaled bias of one adapter's chain."""
    a = torch.cat([bank.ledger_A[expert], bank.lora_A[expert]])
    b = torch.cat([bank.ledger_B[expert], bank.lora_B[expert]], dim=1)
    scale = torch.cat([bank.ledger_scale[expert], bank.scaling[expert].expand(bank.lora_A.shape[1])])
    if bank.lora_bias is None or bank.ledger_bias is None:
        return a, b, scale, None
    return a, b, scale, bank.ledger_bias[expert].sum(0) + bank.scaling[expert] * bank.lora_bias[expert]


def _whole(number: float) -> Any:
    return int(number) if number == int(number) else number
