"""What links are made of: norms, spectra and subspaces of low-rank updates `ΔW = B A`, which are never multiplied out.

All of it follows from the small Gram matrices `A Aᵀ` and `BᵀB`: with `A Aᵀ = S Sᵀ` the squares of the singular values
of `B A` are the eigenvalues of `Sᵀ BᵀB S`. So all adapters of all layers are measured at once, in float64, where they
are. What is below 1e-7 of the largest is rounding, whatever the precision of the factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorachains.bank import LoraBank

ROUNDING = 1e-7
"""The share of the largest singular value below which another can't be told from rounding: their squares are computed
in float64."""


def effective_rank(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """`exp(H(p))` of the singular values divided by their sum, H in nats (Roy and Vetterli 2007, EUSIPCO).

    From 1, of a matrix of rank 1, to n, where all are equal; 0 of a zero matrix, for which it isn't defined.
    """
    total = values.sum(-1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1)
    return torch.where(total.squeeze(-1) > 0, torch.special.entr(shares).sum(-1).exp(), 0)


def singular_values(
    gram_a: Float[Tensor, "*batch rank rank"], gram_b: Float[Tensor, "*batch rank rank"]
) -> Float[Tensor, "*batch rank"]:
    """Those of `B A`, descending, of `A Aᵀ` and `BᵀB`; 0 where they can't be told from rounding."""
    values, vectors = torch.linalg.eigh(gram_a)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    found = torch.linalg.eigvalsh(root.mT @ gram_b @ root).clamp(min=0).sqrt().flip(-1)
    return torch.where(found > ROUNDING * found[..., :1], found, 0)


def norm(
    gram_a: Float[Tensor, "*batch rank rank"], gram_b: Float[Tensor, "*batch rank rank"]
) -> Float[Tensor, "*batch"]:
    """`‖B A‖` (Frobenius) of `A Aᵀ` and `BᵀB`."""
    return (gram_a * gram_b).sum((-2, -1)).clamp(min=0).sqrt()


def overlap(
    gram: Float[Tensor, "*batch columns columns"], start: int, rounding: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """The mean of `cos²` over the principal angles between the space of the first `start` columns and the others'.

    1 where one lies within the other, 0 where they are orthogonal (or one is zero); two random ones of dimensions k and
    l in n dimensions have max(k, l) / n on average.

    Args:
        gram: the columns' inner products.
        rounding: directions with so small a share of the largest singular value are taken for rounding.
    """
    (one, first), (two, second) = (
        _orthonormal(gram[..., part, part], rounding) for part in (slice(None, start), slice(start, None))
    )
    cosines = one.mT @ gram[..., :start, start:] @ two
    return cosines.square().sum((-2, -1)) / torch.minimum(first, second).clamp(min=1)


def _orthonormal(
    gram: Float[Tensor, "*batch columns columns"], rounding: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "*batch columns columns"], Int64[Tensor, "*batch"]]:
    """What makes an orthonormal basis of the columns, filled up with zeros, and its dimension."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > rounding.square().unsqueeze(-1) * values[..., -1:].clamp(min=0)
    return vectors * torch.where(kept, values, torch.inf).rsqrt().unsqueeze(-2), kept.sum(-1)


@dataclass(frozen=True)
class LayerLink:
    """A link of one layer, and the chain up to it; of the weights, not of biases.

    Attributes:
        norm: `‖ΔW‖` (Frobenius) of the link.
        chain_norm: of all links up to it.
        effective_rank: of all links up to it.
        singular_values: of all links up to it, descending.
        overlap_A, overlap_B: of the link's `A` (its rows), or `B` (its columns), with those of all links before
            (`overlap`); `None` for the first.
    """

    norm: float
    chain_norm: float
    effective_rank: float
    singular_values: list[float]
    overlap_A: float | None
    overlap_B: float | None


def layer_links(banks: Mapping[str, LoraBank], start: int, end: int) -> list[dict[str, LayerLink]]:
    """A link of each adapter, by layer: the ranks `start` to `end` of the ledger and, behind it, the live link.

    Layers in which the adapter has numbers that aren't finite, up to that link, are left out.
    """
    of_layers = [_grams(bank, end) for bank in banks.values()]
    gram_a, gram_b, finite = (torch.stack(parts) for parts in zip(*of_layers, strict=True))
    sides = [min(bank.in_features, bank.out_features) for bank in banks.values()]
    rounding = torch.tensor([_rounding(bank) for bank in banks.values()], device=gram_a.device).unsqueeze(1)
    values, link = singular_values(gram_a, gram_b), (..., slice(start, None), slice(start, None))
    found = [norm(gram_a[link], gram_b[link]), norm(gram_a, gram_b), effective_rank(values), values]
    found += [overlap(gram, start, rounding) for gram in (gram_a, gram_b)] if start else []
    numbers = [tensor.tolist() for tensor in found]  # each (layers, adapters, …)
    there, links = finite.tolist(), list[dict[str, LayerLink]]()
    for expert in range(gram_a.shape[1]):
        links.append({})
        for i, layer in enumerate(banks):
            if there[i][expert]:
                one, whole, rank, spectrum, *overlaps = (of[i][expert] for of in numbers)
                links[-1][layer] = LayerLink(one, whole, rank, spectrum[: sides[i]], *(overlaps or (None, None)))
    return links


def _rounding(bank: LoraBank) -> float:
    return max(ROUNDING, torch.finfo(bank.lora_A.dtype).eps * max(bank.out_features, bank.in_features))


def _grams(
    bank: LoraBank, end: int
) -> tuple[Float[Tensor, "experts rank rank"], Float[Tensor, "experts rank rank"], Bool[Tensor, " experts"]]:
    """`A Aᵀ` and `BᵀB` of the first ranks of each adapter, zero where they aren't finite, and whether they are."""
    b, a = factors(bank)
    b, a = b[..., :end].double(), a[:, :end].double()
    gram_a, gram_b = a @ a.mT, b.mT @ b
    finite = (gram_a.isfinite() & gram_b.isfinite()).all(-1).all(-1)
    kept = finite.view(-1, 1, 1)
    return torch.where(kept, gram_a, 0), torch.where(kept, gram_b, 0), finite


def factors(bank: LoraBank) -> tuple[Float[Tensor, "experts out rank"], Float[Tensor, "experts rank in"]]:
    """Each adapter's `B`, times its scaling, and `A`: of the ledger and, behind it, of the live link, side by side."""
    own = bank.own_tensors()
    live = own["scaling"].unsqueeze(2)
    b = torch.cat([own["ledger_B"] * own["ledger_scale"].unsqueeze(1), own["lora_B"] * live], dim=2)
    return b, torch.cat([own["ledger_A"], own["lora_A"]], dim=1)
