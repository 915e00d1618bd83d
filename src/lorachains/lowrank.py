"""Products of thin factors, `ΔW = B A`, measured and shortened without ever being multiplied out.

With the QR decompositions `B = Q R` and `Aᵀ = P S`, `B A = Q (R Sᵀ) Pᵀ`: all singular values are those of the small
core `R Sᵀ`. Everything is computed in float64. (`spectra` measures many at once, and less exactly.)
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def norm(b: Float[Tensor, "out rank"], a: Float[Tensor, "rank in"]) -> float:
    """`‖B A‖`, Frobenius."""
    r, s = (torch.linalg.qr(x.double(), mode="r").R for x in (b, a.mT))
    return float((r @ s.mT).norm())


def best_approximation(
    b: Float[Tensor, "out rank"], a: Float[Tensor, "rank in"], rank: int
) -> tuple[Float[Tensor, "out new_rank"], Float[Tensor, "new_rank in"], float]:
    """The factors of the matrix of at most `rank` that is nearest to `B A` (Eckart and Young), balanced.

    Returns:
        `B` and `A` of exactly `rank`, filled up with zeros, in the precision of those given; and the distance,
        `‖B A − B′ A′‖` (Frobenius), before they are rounded to that precision.
    """
    (left, r), (right, s) = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().mT)
    u, values, vh = torch.linalg.svd(r @ s.mT, full_matrices=False)
    root = values[:rank].sqrt()
    new_b, new_a = left @ (u[:, :rank] * root), (root.unsqueeze(1) * vh[:rank]) @ right.mT
    missing = rank - len(root) if rank > len(root) else 0
    filled_b, filled_a = F.pad(new_b, (0, missing)), F.pad(new_a, (0, 0, 0, missing))
    return filled_b.to(b.dtype), filled_a.to(a.dtype), float(values[rank:].norm())
