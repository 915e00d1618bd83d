"""What a link is made of: norm, spectrum and subspaces of a low-rank update `ΔW = B A`, which is never multiplied out.

The small factors to which `lowrank.reduced` brings `B` and `Aᵀ` stand in for them. All is computed in float64
on the CPU.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorachains.bank import LoraBank
from lorachains.lowrank import reduced, singular_values


def effective_rank(values: Float[Tensor, " n"]) -> float:
    """`exp(H(p))` of the singular values divided by their sum, H in nats (Roy and Vetterli 2007, EUSIPCO).

    From 1, of a matrix of rank 1, to n, where all are equal; 0 of a zero matrix, for which it isn't defined.
    """
    total = float(values.sum())
    return float(torch.special.entr(values / total).sum().exp()) if total else 0.0


def overlap(x: Float[Tensor, "n columns"], y: Float[Tensor, "n others"], rounding: float) -> float:
    """The mean of `cos²` over the principal angles between two column spaces.

    1 where one lies within the other, 0 where they are orthogonal (or one is zero); two random ones of dimensions k and
    l have max(k, l) / n on average.

    Args:
        rounding: see `basis`.
    """
    one, two = basis(x, rounding), basis(y, rounding)
    angles = min(one.shape[1], two.shape[1])
    return float((one.mT @ two).square().sum()) / angles if angles else 0.0


def basis(x: Float[Tensor, "n columns"], rounding: float) -> Float[Tensor, "n dimension"]:
    """An orthonormal basis of the column space.

    Args:
        rounding: directions with so small a share of the largest singular value are taken for rounding.
    """
    u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
    return u[:, s > rounding * s.max()]


@dataclass(frozen=True)
class LayerLink:
    """A link of one layer, and the chain up to it; of the weights, not of biases.

    Attributes:
        norm: `‖ΔW‖` (Frobenius) of the link.
        chain_norm: of all links up to it.
        effective_rank: of all links up to it.
        singular_values: of all links up to it.
        overlap_A, overlap_B: of the link's `A` (its rows), or `B` (its columns), with those of all links before
            (`overlap`); `None` for the first.
    """

    norm: float
    chain_norm: float
    effective_rank: float
    singular_values: list[float]
    overlap_A: float | None
    overlap_B: float | None


def layer_link(bank: LoraBank, expert: int, start: int, end: int) -> LayerLink | None:
    """A link of an adapter: the ranks `start` to `end` of the ledger and, behind it, the live link.

    Returns:
        `None` if it has numbers that aren't finite.
    """
    b, a = factors(bank, expert)
    b, a = b[:, :end], a[:end]
    if not (b.isfinite().all() and a.isfinite().all()):
        return None
    rounding = torch.finfo(b.dtype).eps * max(bank.out_features, bank.in_features)
    b, a = reduced(b), reduced(a.mT).mT
    link, whole = singular_values(b[:, start:], a[start:]), singular_values(b, a)
    return LayerLink(
        float(link.norm()),
        float(whole.norm()),
        effective_rank(whole),
        whole.tolist(),
        overlap(a[start:].mT, a[:start].mT, rounding) if start else None,
        overlap(b[:, start:], b[:, :start], rounding) if start else None,
    )


def factors(bank: LoraBank, expert: int) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """An adapter's `B`, times its scaling, and `A`: of the ledger and, behind it, of the live link, side by side."""
    own = {name: tensor[expert].cpu() for name, tensor in bank.own_tensors().items()}
    live = own["scaling"].expand(own["lora_A"].shape[0])
    b = torch.cat([own["ledger_B"] * own["ledger_scale"], own["lora_B"] * live], dim=1)
    return b, torch.cat([own["ledger_A"], own["lora_A"]])
