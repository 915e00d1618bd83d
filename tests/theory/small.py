"""Problems small enough for a thousand steps of five runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorachains.theory import Completion, Logistic, Problem

SEEDS = [0, 1, 2, 3, 4]
KINDS = ["completion", "logistic"]


def small(kind: str, seeds: Sequence[int] = SEEDS, **other: Any) -> Problem:
    if kind == "completion":
        return Completion(
            **{"rows": 8, "cols": 6, "rank": 2, "radius": 8.0, "observed": 0.6, "noise": 0.1} | other, seeds=seeds
        )
    return Logistic(**{"rows": 4, "cols": 6, "rank": 2, "radius": 5.0, "samples": 60} | other, seeds=seeds)


def in_ball(problem: Problem, share: float, seed: int = 0) -> Tensor:
    """A random matrix for each run whose trace norm is `share` of the radius."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(problem.zeros().shape, generator=generator, dtype=torch.float64)
    return drawn * (share * problem.radius / torch.linalg.matrix_norm(drawn, "nuc"))[:, None, None]


class Tilted(Problem):
    """`⟨C, W⟩ + (β/2) ‖W‖²` in one run, with full gradients only: Theorem 4.1 in the simplest case.

    Its ceiling is the paper's M, a bound on `|L|`, which is not the range of this L.
    """

    def __init__(self, slope: float, curvature: float):
        super().__init__(rows=2, cols=2, rank=1, radius=1.0, seeds=[0])
        self.slope = slope * torch.eye(2, dtype=torch.float64).unsqueeze(0)
        self.smoothness = torch.tensor([curvature], dtype=torch.float64)
        self.ceiling = torch.tensor([slope + curvature / 2], dtype=torch.float64)

    def loss(self, w: Tensor) -> Tensor:
        return (self.slope * w).sum((1, 2)) + self.smoothness / 2 * w.square().sum((1, 2))

    def test_loss(self, w: Tensor) -> Tensor:
        return self.loss(w)

    def gradient(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        return self.slope + self.smoothness * w
