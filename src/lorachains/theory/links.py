"""COLA proper on the problems of the theory (Algorithm 1): links of rank r over a frozen zero, by SGD.

The links are those of a `LoraBank` with one adapter for each run, tied at even steps; one link alone is plain LoRA.
Unlike in Algorithm 2, nothing keeps `W = Σ B_i A_i` in the trace-norm ball.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorachains.bank import LoraBank, draw_a
from lorachains.knots import Even
from lorachains.routing import HardRoute, Routing
from lorachains.theory.frank_wolfe import gap
from lorachains.theory.problems import Problem


@dataclass(frozen=True)
class ChainTrace:
    """What training did; a run that has diverged is infinite.

    Attributes:
        steps: `(points,)`, the SGD steps done at each point.
        losses: `(runs, points)`, `L(W)`.
        gaps: `(runs, points)`, the Frank–Wolfe gap with respect to the ball; it can be negative outside.
        trace_norms: `(runs, points)`, `‖W‖_*`.
        test_losses: `(runs, points)`, see `Problem.test_loss`.
    """

    steps: Sequence[int]
    losses: Float[Tensor, "runs points"]
    gaps: Float[Tensor, "runs points"]
    trace_norms: Float[Tensor, "runs points"]
    test_losses: Float[Tensor, "runs points"]


def train_chains(
    problem: Problem, *, rank: int, links: int, rates: Float[Tensor, " runs"], steps: int, batch: int | None, every: int
) -> ChainTrace:
    """A chain of `links` links of `rank` for each run, by `steps` steps of SGD in all.

    Args:
        rates: each run's learning rate, constant.
        batch: the terms of a minibatch gradient; without, full gradients.
        every: SGD steps between two points of the trace; the last step is one as well.

    Raises:
        LorachainsError: more links than steps.
    """
    knots = Even(links=links, unit="step").plan(steps, steps)
    bank, batches = _bank(problem, rank), problem.minibatches(batch)
    parameters = [bank.lora_A, bank.lora_B]
    points, measured = [], []
    for step in range(steps + 1):
        if step in knots:
            bank.record()
            _extend(bank, problem, rank, link=knots.index(step) + 1)
        w = weights(bank)
        if step % every == 0 or step == steps:
            points.append(step)
            measured.append(_measure(problem, w.detach()))
        if step < steps:
            gradients = torch.autograd.grad(w, parameters, problem.gradient(w.detach(), next(batches)))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.data -= rates[:, None, None] * gradient
    return ChainTrace(points, *torch.stack(measured, 2))


def weights(bank: LoraBank) -> Float[Tensor, "runs rows cols"]:
    """Each run's `W = Σ B_i A_i`: what the bank makes of the unit vectors."""
    unit = torch.eye(bank.in_features, dtype=torch.float64).expand(len(bank.lora_A), -1, -1)
    return bank(unit).mT


def _bank(problem: Problem, rank: int) -> LoraBank:
    frozen = nn.Linear(problem.cols, problem.rows, bias=False, dtype=torch.float64).requires_grad_(False)
    nn.init.zeros_(frozen.weight)
    bank = LoraBank(frozen, problem.runs, Routing(HardRoute(torch.arange(problem.runs))))
    _extend(bank, problem, rank, link=0)
    return bank


def _extend(bank: LoraBank, problem: Problem, rank: int, link: int) -> None:
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + link) for seed in problem.seeds]
    draws = [draw_a("gaussian", rank, problem.cols, generator) for generator in generators]
    bank.extend(torch.stack(draws), torch.ones(problem.runs, dtype=torch.float64))


def _measure(problem: Problem, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, "4 runs"]:
    gradient = problem.gradient(w)
    finite = gradient.isfinite().all(-1).all(-1) & w.isfinite().all(-1).all(-1)
    w, gradient = (torch.where(finite[:, None, None], each, 0) for each in (w, gradient))  # an SVD needs numbers
    size = torch.linalg.matrix_norm(w, "nuc")
    values = [problem.loss(w), gap(w, gradient, problem.radius), size, problem.test_loss(w)]
    return torch.where(finite, torch.stack(values), torch.inf)
