"""Idealised COLA (§4, Algorithm 2): stochastic Frank–Wolfe over the trace-norm ball `K`, its gap, and its bound.

    V_t ∈_ε argmin_{V ∈ K} ⟨V, ∇L(W_t)⟩        W_{t+1} = W_t + η (V_t − W_t)

Write `∇_t = ∇L(W_t)`, `g_t = max_{V ∈ K} ⟨∇_t, W_t − V⟩ ≥ 0` (the gap; the paper prints it with the opposite sign),
D for the diameter of `K`, `ε_t = ⟨V_t, ∇_t⟩ − min_{V ∈ K} ⟨V, ∇_t⟩ ≥ 0`, and M for any upper bound on
`L(W_1) − min_K L`.

**What holds** (Theorem 4.1 with its constant put right). For β-smooth L and any η in (0, 1],

    (1/T) Σ_{t=1}^T g_t  ≤  M/(ηT) + ηβD²/2 + (1/T) Σ_{t=1}^T ε_t

and with the paper's `η = √M / (D √(βT))`, which is in (0, 1] from `T ≥ M/(βD²)` on,

    (1/T) Σ_{t=1}^T g_t  ≤  (3/2) √(Mβ) D / √T + (1/T) Σ_{t=1}^T ε_t.

*Proof.* Smoothness and `‖V_t − W_t‖ ≤ D` give `L(W_{t+1}) ≤ L(W_t) + η ⟨V_t − W_t, ∇_t⟩ + η²βD²/2`. By the definitions,
`⟨V_t − W_t, ∇_t⟩ = min_{V ∈ K} ⟨V − W_t, ∇_t⟩ + ε_t = −g_t + ε_t`. So
`g_t ≤ (L(W_t) − L(W_{t+1}))/η + ηβD²/2 + ε_t`. The mean over t telescopes to `(L(W_1) − L(W_{T+1}))/(ηT)`, which is at
most `M/(ηT)`, since η ≤ 1 keeps `W_{T+1}` in `K`. With the paper's η that is `√(Mβ) D/√T`, and `ηβD²/2` is half. ∎

For a V_t that is exact on a minibatch gradient `∇_t + ξ_t`, with V* the exact minimiser on `∇_t`:
`ε_t = ⟨V_t − V*, ∇_t⟩ ≤ ⟨V* − V_t, ξ_t⟩ ≤ D ‖ξ_t‖_F`, whose mean is at most `Dσ/√b`. With a fixed batch b it does not
vanish as T grows.

The paper's text has 2 for 3/2 and loses signs and the 1/√T on the way: docs/theory.md goes through it line by line.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lorachains.theory.problems import Problem

PerRun = Float[Tensor, " runs"]


@dataclass(frozen=True)
class Trace:
    """What T steps did.

    Attributes:
        losses: `(runs, T + 1)`, `L(W_1)` … `L(W_{T+1})`.
        gaps: `(runs, T)`, `g_t`, from the full gradient.
        slacks: `(runs, T)`, `ε_t`, by how much `V_t` missed the exact minimum.
        last: `(runs, rows, cols)`, `W_{T+1}`.
    """

    losses: Float[Tensor, "runs points"]
    gaps: Float[Tensor, "runs steps"]
    slacks: Float[Tensor, "runs steps"]
    last: Float[Tensor, "runs rows cols"]


def linear_minimiser(
    gradient: Float[Tensor, "*runs rows cols"], radius: float, iterations: int | None = None
) -> Float[Tensor, "*runs rows cols"]:
    """The `V` of the trace-norm ball that minimises `⟨V, gradient⟩`: `−radius · u vᵀ` of the top singular pair.

    Args:
        iterations: of the power method, begun at the gradient's longest row; without, the pair comes from an SVD.
    """
    if iterations is None:
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        return -radius * u[..., :1] * vh[..., :1, :]
    longest = gradient.norm(dim=-1, keepdim=True).argmax(dim=-2, keepdim=True)
    v = F.normalize(gradient.take_along_dim(longest, dim=-2).mT, dim=-2)
    for _ in range(iterations):
        v = F.normalize(gradient.mT @ (gradient @ v), dim=-2)
    return -radius * F.normalize(gradient @ v, dim=-2) * v.mT


def gap(
    w: Float[Tensor, "*runs rows cols"], gradient: Float[Tensor, "*runs rows cols"], radius: float
) -> Float[Tensor, "*runs"]:
    """The Frank–Wolfe gap `⟨∇L(W), W⟩ + radius · ‖∇L(W)‖` (operator norm); never negative for a `W` in the ball."""
    return _inner(w, gradient) + radius * torch.linalg.matrix_norm(gradient, 2)


def step_size(fall: PerRun, smoothness: PerRun, diameter: float, steps: int) -> PerRun:
    """Theorem 4.1's `η = √M / (D √(βT))`, at most 1 (Algorithm 2 wants η in (0, 1], which a small T would break).

    Args:
        fall: M, an upper bound on `L(W_1) − min_K L`.
    """
    return ((fall / (smoothness * steps)).sqrt() / diameter).clamp(max=1)


def bound(fall: PerRun, smoothness: PerRun, diameter: float, steps: int, eta: PerRun) -> PerRun:
    """`M/(ηT) + ηβD²/2`: with the average ε added, what the average gap stays below (see the module).

    At the theorem's step size that is `(3/2) √(Mβ) D/√T`.
    """
    return fall / (eta * steps) + eta * smoothness * diameter**2 / 2


def frank_wolfe(
    problem: Problem, steps: int, eta: PerRun, batch: int | None = None, iterations: int | None = None
) -> Trace:
    """Algorithm 2 from `W_1 = 0`.

    Args:
        eta: the step size of each run, in (0, 1].
        batch: the terms of a minibatch gradient; without, full gradients.
        iterations: see `linear_minimiser`.
    """
    w, batches, radius = problem.zeros(), problem.minibatches(batch), problem.radius
    losses, gaps, slacks = [problem.loss(w)], [], []
    for _ in range(steps):
        full, seen = problem.gradient(w), problem.gradient(w, next(batches))
        v = linear_minimiser(seen, radius, iterations)
        gaps.append(gap(w, full, radius))
        slacks.append(gap(v, full, radius))  # the gap at V is what V misses the minimum by
        w = w + eta[:, None, None] * (v - w)
        losses.append(problem.loss(w))
    return Trace(torch.stack(losses, 1), torch.stack(gaps, 1), torch.stack(slacks, 1), w)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1))
