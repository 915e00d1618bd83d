"""Gradients against autograd, and every constant that Theorem 4.1 asks for against a brute-force measurement."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains.errors import LorachainsError
from lorachains.theory import Completion, Logistic, Problem, linear_minimiser
from tests.theory.small import KINDS, in_ball, small

SHARES = [0.0, 0.3, 1.0]


def term_gradients(problem: Problem, w: Tensor) -> Tensor:
    """`(samples, runs, rows, cols)`, one term's gradient after the other."""
    ones = torch.ones(problem.runs, 1, dtype=torch.long)
    return torch.stack([problem.gradient(w, term * ones) for term in range(problem.samples)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_gradients_are_autograds(kind: str, share: float) -> None:
    problem = small(kind)
    w = in_ball(problem, share).requires_grad_()
    (expected,) = torch.autograd.grad(problem.loss(w).sum(), w)
    torch.testing.assert_close(problem.gradient(w.detach()), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_minibatch_gradients_are_unbiased_and_vary_as_promised(kind: str, share: float) -> None:
    problem = small(kind)
    w = in_ball(problem, share)
    each, full = term_gradients(problem, w), problem.gradient(w)
    torch.testing.assert_close(each.mean(0), full)
    index = next(problem.minibatches(7))
    assert index is not None
    picked = torch.stack([each[index[run], run].mean(0) for run in range(problem.runs)])
    torch.testing.assert_close(problem.gradient(w, index), picked)
    variance = (each - full).square().sum((2, 3)).mean(0)
    assert (variance <= problem.variance).all()
    if kind == "completion":
        torch.testing.assert_close(variance, 2 * (1 - 1 / problem.samples) * problem.loss(w))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_smoothness_bounds_the_hessian(kind: str, share: float) -> None:
    problem = small(kind, seeds=[3])
    hessian: Any = torch.autograd.functional.hessian(lambda w: problem.loss(w).sum(), in_ball(problem, share))
    size = problem.rows * problem.cols
    largest = torch.linalg.eigvalsh(hessian.reshape(size, size))[-1]
    if kind == "completion":
        torch.testing.assert_close(largest, problem.smoothness[0])
    assert largest <= problem.smoothness[0] * (1 + 1e-12)
    assert largest >= problem.smoothness[0] / 10, "a bound so loose would test nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_within_its_ceiling_on_the_ball(kind: str) -> None:
    """Also at its highest point, which is sought by going from vertex to vertex uphill."""
    problem = small(kind)
    w = in_ball(problem, 1.0)
    for _ in range(20):
        assert (problem.loss(w) >= 0).all()
        assert (problem.loss(w) <= problem.ceiling).all()
        w = linear_minimiser(-problem.gradient(w), problem.radius)
    assert (problem.loss(w) >= problem.ceiling / 10).all(), "a bound so loose would test nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_diameter_is_that_of_the_ball(kind: str) -> None:
    problem = small(kind)
    vertex = linear_minimiser(in_ball(problem, 1.0), problem.radius)
    torch.testing.assert_close((vertex - -vertex).norm(dim=(1, 2)), torch.full((5,), problem.diameter).double())
    inside = (in_ball(problem, 1.0, seed=1) - in_ball(problem, 1.0, seed=2)).norm(dim=(1, 2))
    assert (inside <= problem.diameter).all()


def test_without_noise_the_teacher_is_the_border_point_that_fits() -> None:
    problem = small("completion", noise=0.0)
    assert isinstance(problem, Completion)
    torch.testing.assert_close(torch.linalg.matrix_norm(problem.teachers, "nuc"), torch.full((5,), 8.0).double())
    assert torch.linalg.matrix_rank(problem.teachers).tolist() == [2] * 5
    assert problem.loss(problem.teachers).max() < 1e-24
    assert problem.test_loss(problem.teachers).max() == 0
    for run in range(5):
        assert len(problem.entries[run].unique()) == problem.samples == 29


def test_labels_follow_the_inputs_in_seen_and_unseen_samples_alike() -> None:
    """Weights fitted to the seen samples do better than chance on the unseen, and worse than on the seen."""
    problem = small("logistic", samples=400)
    assert isinstance(problem, Logistic)
    w = problem.zeros()
    for _ in range(200):
        w = w - problem.gradient(w) / problem.smoothness[:, None, None]
    assert (problem.test_loss(w) < problem.loss(problem.zeros()) - 0.05).all()
    assert problem.loss(w).mean() < problem.test_loss(w).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_a_stack_is_the_run_alone(kind: str) -> None:
    stacked, alone = small(kind, seeds=[4, 7, 4]), small(kind, seeds=[7])
    w = in_ball(alone, 0.5).expand(3, -1, -1)
    draws, own = stacked.minibatches(5), alone.minibatches(5)
    for _ in range(2):
        ours, theirs = stacked.gradient(w, next(draws)), alone.gradient(w[:1], next(own))
        torch.testing.assert_close(ours[1:2], theirs)
        assert torch.equal(ours[0], ours[2])
        assert not torch.allclose(ours[0], ours[1])


@pytest.mark.parametrize(
    ("kind", "setting", "says"),
    [
        ("completion", {"rows": 0}, "problem.rows is 0"),
        ("completion", {"radius": -1.0}, "problem.radius is -1.0"),
        ("completion", {"observed": 1.5}, "problem.observed is 1.5"),
        ("completion", {"noise": -0.1}, "problem.noise is -0.1"),
        ("logistic", {"rank": 0}, "problem.rank is 0"),
        ("logistic", {"samples": 0}, "problem.samples is 0"),
    ],
)
def test_bad_settings(kind: str, setting: dict[str, Any], says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        small(kind, **setting)
