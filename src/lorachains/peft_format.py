"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

A chain of M links is written as ONE ordinary adapter of rank Σ rᵢ, since
`Σ sᵢ Bᵢ Aᵢ = [s₁B₁ … s_M B_M] · [A₁; …; A_M]`. PEFT, vLLM and whatever else reads PEFT adapters load it. Where one link
ends and the next begins stands in `links.json` beside it, which they don't look at. (The tensors' file could hold it as
metadata, but safetensors writes several entries in no fixed order, and equal runs should leave equal files.)
"""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorachains.errors import LorachainsError
from lorachains.exported import ExportedChain, Factors, Link
from lorachains.inject import check_config, scaling

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FINGERPRINT = "base_fingerprint.txt"
LINKS = "links.json"
BIASES = "link_biases.safetensors"
"""A file of each link's biases by layer, `(links, out_features)`: the adapter itself holds only their sum."""

_A, _B, _BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"


def write_adapter(exported: ExportedChain, folder: Path) -> None:
    """Writes an exported chain as an ordinary PEFT adapter, with what `read_adapter` needs to read it again."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in exported.besides.items()}
    biases = {}
    for name, factors in exported.layers.items():
        tensors[PREFIX + name + _A], tensors[PREFIX + name + _B] = factors.a, factors.b
        if factors.bias is not None:
            tensors[PREFIX + name + _BIAS] = factors.bias.sum(0)
            biases[name] = factors.bias
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / LINKS).write_text(json.dumps([asdict(link) for link in exported.links], indent=2) + "\n")
    if biases and len(exported.links) > 1:
        save_file({name: bias.contiguous() for name, bias in biases.items()}, folder / BIASES)
    config = replace(
        exported.config, r=exported.rank, lora_alpha=_whole(exported.scale * exported.rank), use_rslora=False,
        inference_mode=True, task_type="CAUSAL_LM", init_lora_weights=True,
    )  # fmt: skip
    if isinstance(config.target_modules, set):  # whose order changes from process to process
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    if exported.fingerprint is not None:
        (folder / FINGERPRINT).write_text(exported.fingerprint + "\n")


def read_adapter(folder: Path, activated: bool = False) -> ExportedChain:
    """A PEFT adapter's chain. One that wasn't written here is a single link.

    Args:
        activated: whether the caller sees to it that an activated adapter (PEFT's `alora_invocation_tokens`) serves
            no token before its invocation.

    Raises:
        LorachainsError: there is none, it is damaged, or it holds other things than a bank's factors.
    """
    config = read_config(folder)
    config.init_lora_weights = True  # the weights are read
    if not activated:
        refuse_activated(folder, config)
    _check_followed(folder, replace(config, modules_to_save=None, alora_invocation_tokens=None))
    tensors, links = _read(folder / WEIGHTS), _read_links(folder, config.r)
    biases = _read(folder / BIASES) if config.lora_bias and len(links) > 1 else {}
    layers = {}
    for name in [key.removesuffix(_A) for key in tensors if key.endswith(_A)]:
        a, b, bias = (tensors.pop(name + key, None) for key in (_A, _B, _BIAS))
        if a is None or b is None or not a.shape[0] == b.shape[1] == config.r or (bias is None) == config.lora_bias:
            raise LorachainsError(
                f"{folder / WEIGHTS}: the factors of {name.removeprefix(PREFIX)} are not what {CONFIG} says "
                f"(rank {config.r}, lora_bias {config.lora_bias}): copy or train the adapter again"
            )
        name = name.removeprefix(PREFIX)
        layers[name] = Factors(a, b, None if bias is None else biases.get(name, bias.unsqueeze(0)))
    besides = {key.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for key, tensor in tensors.items()}
    return ExportedChain(config, _fingerprint(folder), links, layers, scaling(config, config.r), besides)


def refuse_activated(folder: Path, config: LoraConfig) -> None:
    """Raises `LorachainsError` for an adapter that serves no token before its invocation, where all are served."""
    if config.alora_invocation_tokens is not None:
        raise LorachainsError(
            f"{folder} is an activated LoRA, which serves no token before its invocation: load it by its chain "
            "(lorachains.load, lorachains.generate) or with PEFT"
        )


def _check_followed(folder: Path, config: LoraConfig) -> None:
    try:
        check_config(config)
    except LorachainsError as error:
        raise LorachainsError(f"{folder / CONFIG}: {error}") from error


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
    was = _fingerprint(folder)
    named = read_config(folder).base_model_name_or_path
    if was is None and named and named != base_name:
        log.warning(
            "%s names %s as its base, not %s: it fits only if the weights are the same", folder, named, base_name
        )
    if was is not None and was != base_fingerprint:
        raise LorachainsError(
            f"{folder} was trained on {named} (weights {was}), not on {base_name} (weights {base_fingerprint}): "
            "load it with its own base"
        )


def _fingerprint(folder: Path) -> str | None:
    path = folder / FINGERPRINT
    return path.read_text(errors="replace").strip() if path.is_file() else None


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise LorachainsError(f"{path} is missing: the adapter folder is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise LorachainsError(f"{path} can't be read ({error}): it is damaged, copy or train it again") from error


def _read_links(folder: Path, rank: int) -> tuple[Link, ...]:
    path = folder / LINKS
    if not path.is_file():
        return (Link(rank, None),)
    try:
        links = tuple(_link(**link) for link in json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LorachainsError(f"{path} can't be read ({error}): copy it again, or delete it") from error
    if sum(link.rank for link in links) != rank:
        raise LorachainsError(f"{path} has links of other ranks than the adapter beside it, {rank} in all: delete it")
    return links


def _link(rank: Any, knot: Any) -> Link:
    if type(rank) is not int or rank < 1 or (knot is not None and type(knot) is not int):
        raise ValueError(f"a link of rank {rank!r} with the knot {knot!r}")
    return Link(rank, knot)


def _whole(number: float) -> Any:
    return int(number) if number == int(number) else number
