"""What docs/theory.md calls a slip in Theorem 4.1 or its proof is one: each by a counter-example or its algebra.

The numbers are those of the list there.
"""

import math

import pytest
import torch

from lorachains.theory import bound, frank_wolfe, gap, linear_minimiser, step_size
from tests.theory.small import Tilted, small


def printed(ceiling: float, smoothness: float, diameter: float, steps: int) -> float:
    """The theorem's right-hand side but for ε."""
    return 2 * math.sqrt(ceiling * smoothness) * diameter / math.sqrt(steps)


def test_1_the_printed_gap_is_not_zero_at_the_minimum() -> None:
    """`max_V ⟨∇, V − W⟩` near the minimiser of a linear loss is as large as it gets, for ever; the gap is near 0."""
    problem = Tilted(slope=1.0, curvature=0.01)
    eta = step_size(problem.ceiling, problem.smoothness, problem.diameter, 5000)
    w = frank_wolfe(problem, 5000, eta).last
    gradient = problem.gradient(w)
    highest = (linear_minimiser(-gradient, 1.0) * gradient).sum()
    as_printed = (highest - (w * gradient).sum()).item()
    assert gap(w, gradient, 1.0).item() < 1e-2
    assert as_printed > 1.9 > 100 * printed(problem.ceiling.item(), 0.01, problem.diameter, 5000)


def test_3_epsilon_on_the_left_is_refuted_by_an_oracle_that_stays() -> None:
    """V_t = W_t is an ε-approximate minimiser for ε = g_t. Nothing moves, and g_t + ε is not below any 1/√T."""
    problem = Tilted(slope=1.0, curvature=1.0)
    w = problem.zeros()
    g = gap(w, problem.gradient(w), 1.0).item()
    epsilon, fall = g, 0.0
    limit = printed(problem.ceiling.item(), 1.0, problem.diameter, 10_000)
    eta = step_size(problem.ceiling, problem.smoothness, problem.diameter, 10_000).item()
    assert g + epsilon > fall / eta + eta * problem.diameter**2 / 2  # the printed step
    assert g + epsilon > limit  # what it would sum to
    assert g <= limit + epsilon  # what the theorem says, and holds


def test_5_the_drop_can_be_twice_the_bound_on_the_size() -> None:
    """`|L| ≤ M` allows `h_1 − h_{T+1} = 2M`: from a linear loss's maximiser to its minimiser in one step."""
    problem = Tilted(slope=1.0, curvature=1e-9)
    top = linear_minimiser(-problem.slope, 1.0)
    bottom = top + 1.0 * (linear_minimiser(problem.gradient(top), 1.0) - top)
    assert (problem.loss(top) - problem.loss(bottom)).item() > 1.99 * problem.ceiling.item()


@pytest.mark.parametrize(
    ("ceiling", "smoothness", "diameter"), [(5.0, 0.003, 80.0), (65.0, 0.7, 20.0), (2.0, 0.1, 1.0)]
)
@pytest.mark.parametrize("steps", [100, 1000])
def test_6_and_7_the_last_lines(ceiling: float, smoothness: float, diameter: float, steps: int) -> None:
    """The sum before it is 2√(Mβ) D/√T, exactly (3/2 with the ½ kept). With ηT for √T the line says 2βD²/√T."""
    eta = math.sqrt(ceiling) / (diameter * math.sqrt(smoothness * steps))
    root = math.sqrt(ceiling * smoothness) * diameter
    assert ceiling / (eta * steps) + eta * smoothness * diameter**2 == pytest.approx(2 * root / math.sqrt(steps))
    kept = [torch.tensor([value], dtype=torch.float64) for value in (ceiling, smoothness, eta)]
    assert bound(kept[0], kept[1], diameter, steps, kept[2]).item() == pytest.approx(1.5 * root / math.sqrt(steps))
    last_line = 2 * root / (eta * steps)
    assert last_line == pytest.approx(2 * smoothness * diameter**2 / math.sqrt(steps))
    below = last_line < ceiling / (eta * steps) + eta * smoothness * diameter**2
    assert below == (ceiling > smoothness * diameter**2), "then it is no upper bound; else it doesn't give the theorem"


def test_8_few_steps_need_a_step_size_above_one() -> None:
    """For T < M/(βD²) the η is no step size, and the bound fails whatever the steps: T = 1, a nearly linear loss."""
    problem = Tilted(slope=1.0, curvature=1e-6)
    ceiling, beta = problem.ceiling.item(), 1e-6
    assert math.sqrt(ceiling) / (problem.diameter * math.sqrt(beta)) > 1
    eta = step_size(problem.ceiling, problem.smoothness, problem.diameter, 1)
    assert eta.item() == 1
    trace = frank_wolfe(problem, 1, eta)
    assert trace.gaps.mean().item() > 100 * printed(ceiling, beta, problem.diameter, 1)
    assert trace.gaps.mean() <= bound(problem.ceiling, problem.smoothness, problem.diameter, 1, eta).item()


def test_9_a_fixed_minibatch_keeps_its_slack() -> None:
    """Without ε the bound is broken, and thirty times the steps don't mend it: the gap stays where the slack is."""
    problem = small("completion")
    average = {}
    for steps in (100, 3000):
        eta = step_size(problem.loss(problem.zeros()), problem.smoothness, problem.diameter, steps)
        trace = frank_wolfe(problem, steps, eta, batch=2)
        average[steps] = trace.gaps.mean(1)
        limit = bound(problem.loss(problem.zeros()), problem.smoothness, problem.diameter, steps, eta)
        assert (average[steps] <= limit + trace.slacks.mean(1)).all()
    assert (average[3000] > limit).all()
    assert (average[3000] > average[100] / 3).all()


def test_10_losses_that_change_keep_their_gap() -> None:
    """A "sequence of functions" doesn't telescope: of ±⟨C, W⟩ in turn, each step is undone by the next."""
    problem, steps = Tilted(slope=1.0, curvature=1e-3), 1000
    eta = step_size(problem.ceiling, problem.smoothness, problem.diameter, steps).item()
    w, gaps = problem.zeros(), []
    for t in range(steps):
        gradient = (-1) ** t * problem.slope
        gaps.append(gap(w, gradient, 1.0).item())
        w = w + eta * (linear_minimiser(gradient, 1.0) - w)
    assert sum(gaps) / steps > 0.5 > 2 * printed(problem.ceiling.item(), 1e-3, problem.diameter, steps)
