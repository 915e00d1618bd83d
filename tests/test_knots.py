"""Where each schedule ties its knots."""

from itertools import pairwise

import pytest

from lorachains.errors import LorachainsError
from lorachains.knots import AtEpochs, AtSteps, Even, Every, Knots


@pytest.mark.parametrize(
    ("knots", "total", "per_epoch", "steps"),
    [
        (Knots(), 50, 10, []),
        (Even(links=1), 50, 10, []),
        (Even(links=2), 50, 10, [30]),  # 3 + 2 epochs, as in the paper
        (Even(links=3), 50, 10, [20, 40]),  # 2 + 2 + 1
        (Even(links=5), 50, 10, [10, 20, 30, 40]),
        (Even(links=2, unit="step"), 50, 10, [25]),
        (Even(links=3, unit="step"), 50, 10, [17, 34]),
        (Even(links=3), 20, 10, [7, 14]),  # fewer epochs than links
        (Even(links=3), 25, 10, [9, 17]),  # ends within an epoch
        (AtEpochs(epochs=[3]), 50, 10, [30]),
        (AtEpochs(epochs=[4, 1]), 50, 10, [10, 40]),
        (AtSteps(steps=[7, 7, 3]), 50, 10, [3, 7]),
        (Every(n_steps=15), 50, 10, [15, 30, 45]),
        (Every(n_steps=25), 50, 10, [25]),  # none at the end
    ],
)
def test_plan(knots: Knots, total: int, per_epoch: int, steps: list[int]) -> None:
    assert knots.plan(total, per_epoch) == steps


@pytest.mark.parametrize("links", range(1, 8))
@pytest.mark.parametrize("total", [7, 50, 99])
def test_even_links_differ_by_one_step_at_most(links: int, total: int) -> None:
    ends = [0, *Even(links=links, unit="step").plan(total, 10), total]
    lengths = [b - a for a, b in pairwise(ends)]
    assert len(lengths) == links
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        (AtSteps(steps=[50]), r"knot after optimizer step 50, but the run has 50 .*1…49"),
        (AtSteps(steps=[0]), "knot after optimizer step 0"),
        (AtEpochs(epochs=[5]), "knot after optimizer step 50"),
        (Even(links=60), "knots.links is 60, but the run has 50 optimizer steps"),
        (Even(links=0), "knots.links is 0"),
        (Even(links=7, unit="epoch"), "knots.unit=epoch can't split 5 epochs into 7 links"),
        (Every(n_steps=50), r"knots\.n_steps is 50, but the run has 50 optimizer steps and so no knot"),
        (Every(n_steps=0), "knots.n_steps is 0"),
        (Even(links=3, ranks=[8, 4]), "knots.ranks gives 2 ranks for a chain of 3 links"),
    ],
)
def test_impossible_plans_say_what_to_do(knots: Knots, message: str) -> None:
    with pytest.raises(LorachainsError, match=message):
        knots.plan(50, 10)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "fold"},
        {"lr": "decay"},
        {"init": "zero"},
        {"scaling": "r"},
        {"ranks": [8, 0]},
        {"warmup": -1},
        {"requantize": True},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
    ],
)
def test_bad_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(LorachainsError, match=f"knots.{next(iter(fields))}"):
        Knots(**fields)  # type: ignore[arg-type]
