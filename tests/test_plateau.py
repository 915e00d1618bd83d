"""Where knots are tied on curves of losses: against a slow reading of the rule, and where the answer is plain."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lorachains.errors import LorachainsError
from lorachains.plateau import LAG, Plateau, Watch


def knots_on(losses: Sequence[float], knots: Plateau, stop_at: int | None = None) -> list[int]:
    """The optimizer steps after which a run with these losses ties knots; stopped and resumed once, if asked to."""
    watch, tied = Watch(knots), []
    for step in range(len(losses)):
        if step == stop_at:
            again = Watch(knots)
            again.load(watch.state())
            watch = again
        for loss in losses[watch.seen : max(0, step - LAG)]:
            watch.see(loss)
        if watch.due(step, len(losses)):
            watch.tied(step)
            tied.append(step)
    return tied


def smoothed(losses: Sequence[float], decay: float) -> float:
    """The weighted mean with the weights written out, the latest loss the heaviest."""
    weights = [decay**age for age in reversed(range(len(losses)))]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def slowly(losses: Sequence[float], knots: Plateau) -> list[int]:
    """The rule, read again from the beginning at each step."""
    means = [math.inf] + [smoothed(losses[:n], knots.decay) for n in range(1, len(losses) + 1)]  # of the first n
    tied: list[int] = []
    for step in range(1, len(losses)):
        begun, seen = (tied[-1] if tied else 0), step - LAG
        first = max(begun, 1)
        if len(tied) + 1 == knots.links or seen < first:
            continue
        best, since, improvements = means[first], first, 0
        for n in range(first + 1, seen + 1):
            if means[n] < best * (1 - knots.min_improvement):
                best, since, improvements = means[n], n, improvements + 1
        flat = seen - since >= knots.patience and step - begun >= knots.min_steps
        if flat and len(losses) - step >= knots.min_steps:
            if not improvements:
                return tied
            tied.append(step)
    return tied


def curve(seed: int, steps: int = 260) -> list[float]:
    """Falls towards a floor, then towards a lower one, and so on, with noise."""
    rng = np.random.default_rng(seed)
    level, target, losses = 3.0, 2.0, []
    for _ in range(steps):
        level += 0.15 * (target - level)
        if rng.random() < 0.02:
            target *= rng.uniform(0.5, 1.0)
        losses.append(level * float(rng.lognormal(0, 0.05)))
    return losses


SETTINGS = [
    Plateau(patience=10, min_steps=1, decay=0.9, links=4),
    Plateau(patience=20, min_steps=30, decay=0.8, min_improvement=0.03, links=6),
    Plateau(patience=1, min_steps=5, decay=0.0, min_improvement=0.0, links=3),
    Plateau(patience=5, min_steps=60, decay=0.95, min_improvement=0.1, links=9),
]


@pytest.mark.parametrize("knots", SETTINGS, ids=range(len(SETTINGS)))
def test_the_rule(knots: Plateau) -> None:
    found = [knots_on(curve(seed), knots) for seed in range(12)]
    assert found == [slowly(curve(seed), knots) for seed in range(12)]
    assert len(set(map(tuple, found))) > 3
    for steps in found:
        assert len(steps) < knots.links
        ends = [0, *steps, 260]
        assert all(b - a >= knots.min_steps for a, b in pairwise(ends))


@pytest.mark.parametrize("stop_at", range(0, 260, 7))
def test_a_resumed_run_ties_the_same_knots(stop_at: int) -> None:
    for seed, knots in enumerate(SETTINGS):
        assert knots_on(curve(seed), knots, stop_at) == knots_on(curve(seed), knots)


EXACT = Plateau(patience=10, min_steps=1, decay=0.0, links=9)
"""Without smoothing each step's loss counts by itself."""


def test_a_knot_comes_patience_and_lag_after_the_last_improvement() -> None:
    """The 5th loss is the last that is lower, and the link after it finds nothing."""
    assert knots_on([5, 4, 3, 2, 1] + [1] * 95, EXACT) == [5 + 10 + LAG]


def test_each_stair_is_a_link() -> None:
    """The links improve at the 4th, 30th and 56th loss; the fourth one finds nothing."""
    stairs = [2.0] * 3 + [1.0] * 26 + [0.5] * 26 + [0.25] * 60
    assert knots_on(stairs, EXACT) == [4 + 10 + LAG, 30 + 10 + LAG, 56 + 10 + LAG]
    assert knots_on(stairs, replace(EXACT, links=3)) == [4 + 10 + LAG, 30 + 10 + LAG]


def test_no_knot_where_it_would_not_help() -> None:
    """While the loss falls, where it never has, after a link in vain, and where too little of the run is left."""
    assert knots_on([0.98**i for i in range(200)], EXACT) == []
    assert knots_on([1.0] * 200, EXACT) == []
    in_vain = [2.0] + [1.0] * 60 + [0.5] * 139  # the second link has ended the chain before the loss falls again
    assert knots_on(in_vain, EXACT) == [2 + 10 + LAG]
    assert knots_on([2.0] + [1.0] * 40, Plateau(patience=10, min_steps=30, decay=0.0)) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_knot_in_a_run_that_has_diverged(bad: float) -> None:
    assert knots_on([2.0, 1.0] + [bad] * 100, EXACT) == []


def test_a_loss_of_zero_ends_the_chain() -> None:
    assert knots_on([1.0] + [0.0] * 200, EXACT) == [2 + 10 + LAG]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("links", 0), ("patience", 0), ("patience", 2.5), ("min_steps", 0), ("min_improvement", 1.0),
        ("min_improvement", -0.1), ("decay", 1), ("decay", "high"), ("mode", "fold"),
    ],
)  # fmt: skip
def test_bad_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(LorachainsError, match=f"knots.{field} is {value!r}"):
        Plateau(**{field: value})  # type: ignore[arg-type]


def test_ranks_are_of_the_longest_chain() -> None:
    assert Plateau(links=3, ranks=[8, 4, 2]).plan(500, 100) == []
    with pytest.raises(LorachainsError, match="2 ranks for a chain of up to 3 links"):
        Plateau(links=3, ranks=[8, 4]).plan(500, 100)


def test_a_run_too_short_for_a_knot_is_told(caplog: pytest.LogCaptureFixture) -> None:
    knots = Plateau(patience=10, min_steps=15, decay=0.0)
    soonest = next(total for total in range(200) if knots_on([2.0] + [1.0] * (total - 1), knots))
    for total in (soonest - 1, soonest):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lorachains"):
            knots.plan(total, 10)
        assert ("no knot will be tied" in caplog.text) == (total < soonest)
