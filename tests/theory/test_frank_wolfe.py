"""The linear oracle, the gap, and Theorem 4.1 with its constant put right, measured in every run."""

import functools

import pytest
import torch

from lorachains.theory import Trace, bound, frank_wolfe, gap, linear_minimiser, step_size
from tests.theory.small import KINDS, in_ball, small

HORIZONS = [10, 30, 100, 300, 1000]


@functools.cache
def walked(kind: str, over: str, horizon: int, batch: int | None) -> tuple[Trace, torch.Tensor]:
    """The trace at the paper's step size, and the bound but for ε."""
    problem = small(kind)
    fall = problem.ceiling if over == "ball" else problem.loss(problem.zeros())
    eta = step_size(fall, problem.smoothness, problem.diameter, horizon)
    trace = frank_wolfe(problem, horizon, eta, batch)
    return trace, bound(fall, problem.smoothness, problem.diameter, horizon, eta)


def test_the_oracle_is_the_best_of_the_ball() -> None:
    problem = small("completion")
    gradient = in_ball(problem, 1.0, seed=9)
    best = linear_minimiser(gradient, problem.radius)
    torch.testing.assert_close(torch.linalg.matrix_norm(best, "nuc"), torch.full((5,), 8.0).double())
    lowest = (best * gradient).sum((1, 2))
    torch.testing.assert_close(lowest, -8 * torch.linalg.svdvals(gradient)[:, 0])
    for seed in range(50):
        assert (lowest <= (in_ball(problem, 1.0, seed) * gradient).sum((1, 2))).all()


def test_the_power_method_comes_to_the_svd() -> None:
    gradient = in_ball(small("completion"), 1.0, seed=9)
    exact = linear_minimiser(gradient, 3.0)
    errors = [(linear_minimiser(gradient, 3.0, n) - exact).norm() for n in (1, 10, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    assert torch.equal(linear_minimiser(torch.zeros_like(gradient), 3.0, 5), torch.zeros_like(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_bounds_the_distance_to_the_minimum(kind: str) -> None:
    """`g(W) = max_V ⟨∇L(W), W − V⟩`, and for a convex loss `g(W) ≥ L(W) − L(V)` for every V of the ball."""
    problem = small(kind)
    w = in_ball(problem, 0.7, seed=1)
    gradient = problem.gradient(w)
    measured = gap(w, gradient, problem.radius)
    best = linear_minimiser(gradient, problem.radius)
    torch.testing.assert_close(measured, (gradient * (w - best)).sum((1, 2)))
    for seed in range(50):
        other = in_ball(problem, 1.0, seed)
        assert (measured >= (gradient * (w - other)).sum((1, 2))).all()
        assert (measured >= problem.loss(w) - problem.loss(other)).all()


def test_steps_are_those_of_algorithm_2_written_out() -> None:
    problem = small("completion", seeds=[1])
    eta = torch.tensor([0.3], dtype=torch.float64)
    trace = frank_wolfe(problem, 4, eta, batch=3)
    batches, w = problem.minibatches(3), problem.zeros()[0]
    for t in range(4):
        full = problem.gradient(w.unsqueeze(0))[0]
        u, s, vh = torch.linalg.svd(problem.gradient(w.unsqueeze(0), next(batches))[0])
        v = -8 * torch.outer(u[:, 0], vh[0])
        exact = -8 * torch.linalg.svdvals(full)[0]
        torch.testing.assert_close(trace.gaps[0, t], (w * full).sum() - exact)
        torch.testing.assert_close(trace.slacks[0, t], (v * full).sum() - exact)
        torch.testing.assert_close(trace.losses[0, t], problem.loss(w.unsqueeze(0))[0])
        w = 0.7 * w + 0.3 * v
        assert s[0] > 0
    torch.testing.assert_close(trace.last[0], w)
    torch.testing.assert_close(trace.losses[0, 4], problem.loss(w.unsqueeze(0))[0])


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("over", ["ball", "start"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_holds_in_every_run(kind: str, over: str, horizon: int, batch: int | None) -> None:
    trace, limit = walked(kind, over, horizon, batch)
    assert (trace.gaps.mean(1) <= limit + trace.slacks.mean(1)).all()
    assert (trace.gaps >= 0).all()
    assert (trace.slacks > -1e-12).all()
    assert torch.linalg.matrix_norm(trace.last, "nuc").max() <= small(kind).radius * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_keeps_its_own_inequality(kind: str) -> None:
    """`g_t ≤ (L(W_t) − L(W_{t+1}))/η + ηβD²/2 + ε_t`, of which the bound is the mean."""
    problem = small(kind)
    eta = torch.full((5,), 0.05, dtype=torch.float64)
    trace = frank_wolfe(problem, 100, eta, batch=4)
    fall = (trace.losses[:, :-1] - trace.losses[:, 1:]) / eta[:, None]
    curved = (eta * problem.smoothness * problem.diameter**2 / 2)[:, None]
    assert (trace.gaps <= fall + curved + trace.slacks + 1e-12).all()


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_minibatches_and_slack_the_constant_is_three_halves(kind: str, horizon: int) -> None:
    problem = small(kind)
    assert (horizon >= problem.ceiling / (problem.smoothness * problem.diameter**2)).all()
    trace, _ = walked(kind, "ball", horizon, None)
    short = (problem.ceiling * problem.smoothness / horizon).sqrt() * problem.diameter
    assert (trace.gaps.mean(1) <= 1.5 * short).all()
    assert trace.slacks.abs().max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_slack_of_minibatches_is_below_what_their_variance_allows(kind: str) -> None:
    problem, (trace, _) = small(kind), walked(kind, "start", 300, 4)
    assert trace.slacks.mean() <= (problem.diameter * (problem.variance / 4).sqrt()).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_growing_batch_the_average_gap_vanishes(kind: str) -> None:
    few, many = (walked(kind, "ball", horizon, horizon)[0].gaps.mean(1) for horizon in (10, 1000))
    assert (many < few / 3).all()


def test_an_oracle_of_few_iterations_is_paid_for_by_its_slack() -> None:
    problem = small("completion")
    eta = step_size(problem.ceiling, problem.smoothness, problem.diameter, 50)
    trace = frank_wolfe(problem, 50, eta, iterations=1)
    limit = bound(problem.ceiling, problem.smoothness, problem.diameter, 50, eta)
    assert trace.slacks.mean() > 1e-4
    assert (trace.gaps.mean(1) <= limit + trace.slacks.mean(1)).all()
