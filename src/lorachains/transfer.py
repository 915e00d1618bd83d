"""Adapters out of a chain, and into one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lorachains.bank import LoraBank
from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.exported import ExportedChain, Factors, Link
from lorachains.peft_format import WEIGHTS, read_adapter, write_adapter


def save_adapter(
    chain: Chain, folder: Path, base_name: str, base_fingerprint: str, expert: int = 0,
    invocation: Sequence[int] | None = None,
) -> int:  # fmt: skip
    """Writes one adapter's whole chain, ledger and live link, as a PEFT adapter: see `export`.

    Args:
        base_name: what `from_pretrained` is to load as the base (PEFT's `base_model_name_or_path`).
        base_fingerprint: of the base's weights, so that a wrong base is noticed at loading.
        invocation: the tokens from which on it serves a text (PEFT's `alora_invocation_tokens`); `None` for all.

    Returns:
        The rank of the adapter written.
    """
    exported = export(chain, base_name, base_fingerprint, expert)
    config = replace(exported.config, alora_invocation_tokens=None if invocation is None else list(invocation))
    write_adapter(replace(exported, config=config), folder)
    return exported.rank


@torch.no_grad()
def export(chain: Chain, base_name: str, base_fingerprint: str, expert: int = 0) -> ExportedChain:
    """One adapter's whole chain, ledger and live link.

    Ranks whose `B` is zero in all layers add nothing and are left out, unless there are no others: a live link that was
    never trained, or a link that only other adapters of the chain have. A chain that was merged
    into bfloat16 weights is exported as it was learned: on the original base it gives what the merge would have without
    its rounding.
    """
    columns = {name: _columns(bank, expert) for name, bank in chain.banks.items()}
    kept = torch.stack([(b != 0).any(0) for _, b, _, _ in columns.values()]).any(0)
    if not kept.any():
        kept[-chain.rank :] = True
    link_of = torch.full(kept.shape, len(chain.ranks))
    link_of[: sum(chain.ranks)] = torch.arange(len(chain.ranks)).repeat_interleave(torch.tensor(chain.ranks).long())
    ranks = torch.bincount(link_of[kept], minlength=len(chain.ranks) + 1)
    knots = [None if knot < 0 else knot for knot in chain.knots] + [None]
    scales = {float(s) for _, _, scale, _ in columns.values() for s in scale[kept]}
    common = scales.pop() if len(scales) == 1 else 1.0
    layers = {
        name: Factors(
            a[kept], b[:, kept] * (scale[kept] / common), None if bias is None else bias[ranks > 0] / common
        )
        for name, (a, b, scale, bias) in columns.items()
    }  # fmt: skip
    config = replace(
        chain.config, base_model_name_or_path=base_name,
        fan_in_fan_out=any(isinstance(bank.base_layer, Conv1D) for bank in chain.banks.values()),
    )  # fmt: skip
    links = tuple(Link(rank, knot) for rank, knot in zip(ranks.tolist(), knots, strict=True) if rank)
    return ExportedChain(config, base_fingerprint, links, layers, common)


@torch.no_grad()
def load_adapter(chain: Chain, folder: Path, expert: int = 0, activated: bool = False) -> None:
    """Reads a PEFT adapter into the live link of one of the chain's adapters, whose rank must be the same.

    Args:
        activated: see `read_adapter`.

    Raises:
        LorachainsError: the file can't be read, or its layers, rank or shapes differ from the chain's.
    """
    given = read_adapter(folder, activated)
    _check_layers(given, chain, folder)
    if given.rank != chain.rank:
        raise LorachainsError(f"{folder} has the rank {given.rank}, the model's link {chain.rank}")
    for name, bank in chain.banks.items():
        factors = given.layers[name]
        bank.lora_A[expert].copy_(factors.a)
        bank.lora_B[expert].copy_(factors.b)
        if bank.lora_bias is not None and factors.bias is not None:
            bank.lora_bias[expert].copy_(factors.bias.sum(0))


def begin_with(chain: Chain, folder: Path, links: int | None = None) -> None:
    """Takes over the first links of a PEFT adapter (all by default) as the first ones of each of the chain's adapters.

    The live link begins afresh after them.

    Raises:
        LorachainsError: it can't be read, has fewer links, or is of other layers or shapes than the chain.
    """
    given = read_adapter(folder)
    _check_layers(given, chain, folder)
    if links is not None:
        given = given.first(links, "start_links")
    taken = given.links if links != 0 else ()
    for name, bank in chain.banks.items():
        factors, rank = given.layers[name], sum(link.rank for link in taken)
        bank.take("ledger_A", factors.a[:rank].expand(chain.experts, -1, -1))
        bank.take("ledger_B", factors.b[:, :rank].expand(chain.experts, -1, -1))
        bank.take("ledger_scale", torch.full((chain.experts, rank), given.scale, dtype=torch.float64))
        if factors.bias is not None:
            bank.take("ledger_bias", given.scale * factors.bias[: len(taken)].expand(chain.experts, -1, -1))
    chain.ranks = [link.rank for link in taken]
    chain.knots = [-1 if link.knot is None else link.knot for link in taken]
    chain.inherited = len(taken)
    chain.extend()


def _check_layers(given: ExportedChain, chain: Chain, folder: Path) -> None:
    where = folder / WEIGHTS
    for name, bank in chain.banks.items():
        factors = given.layers.get(name)
        if factors is None:
            raise LorachainsError(f"{where} has no {name}: it is of another model or of other target_modules")
        if (shape := (factors.a.shape[1], factors.b.shape[0])) != (bank.in_features, bank.out_features):
            raise LorachainsError(
                f"{where}: {name} has the shape {shape} (in, out), the model needs "
                f"{(bank.in_features, bank.out_features)}: load the adapter with its own base model"
            )
        if (factors.bias is None) != (bank.lora_bias is None):
            raise LorachainsError(f"{where}: adapter.lora_bias is {given.config.lora_bias} in it: set it alike")
    if more := [*(given.layers.keys() - chain.banks.keys()), *given.besides]:
        raise LorachainsError(
            f"{where} has {len(more)} layers that are none of the model's targets, as {min(more)}: load it with its "
            "own base and target_modules"
        )


def _columns(bank: LoraBank, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`A (Σ rank, in)`, `B (out, Σ rank)`, each rank's scale, and each link's scaled bias, of one adapter's chain.

    On the CPU: what follows are many small operations, each of which a GPU would be waited for.
    """
    a = torch.cat([bank.ledger_A[expert], bank.lora_A[expert]]).cpu()
    b = torch.cat([bank.ledger_B[expert], bank.lora_B[expert]], dim=1).cpu()
    scale = torch.cat([bank.ledger_scale[expert], bank.scaling[expert].expand(bank.lora_A.shape[1])]).cpu()
    if bank.lora_bias is None or bank.ledger_bias is None:
        return a, b, scale, None
    live = bank.scaling[expert] * bank.lora_bias[expert]
    return a, b, scale, torch.cat([bank.ledger_bias[expert], live.unsqueeze(0)]).cpu()
