"""Agreement by a published example and by its definition over pairs; intervals by published figures."""

import random
from itertools import permutations
from typing import Literal

import pytest

from lorachains.human import krippendorff_alpha, wilson

# Krippendorff (2011), section C: four observers, twelve units, five categories, values missing.
OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
UNITS = [[int(v) - 1 for v in unit if v != "."] for unit in zip(*OBSERVERS, strict=True)]

LEVELS: tuple[Literal["nominal"], Literal["ordinal"]] = ("nominal", "ordinal")


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_the_published_example(level: Literal["nominal", "ordinal"], alpha: float) -> None:
    assert krippendorff_alpha(UNITS, 5, level) == pytest.approx(alpha, abs=5e-4)


def by_pairs(units: list[list[int]], categories: int, level: str) -> float:
    """One minus the mean disagreement of pairs within units over that of pairs among all values."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    counts = [values.count(c) for c in range(categories)]

    def distance(c: int, k: int) -> float:
        low, high = min(c, k), max(c, k)
        return float(c != k) if level == "nominal" else (sum(counts[low : high + 1]) - (counts[c] + counts[k]) / 2) ** 2

    within = sum(distance(a, b) / (len(unit) - 1) for unit in units for a, b in permutations(unit, 2)) / len(values)
    among = sum(distance(a, b) for a, b in permutations(values, 2)) / (len(values) * (len(values) - 1))
    return 1 - within / among


@pytest.mark.parametrize("level", LEVELS)
def test_its_definition(level: Literal["nominal", "ordinal"]) -> None:
    draw = random.Random(0)
    for _ in range(20):
        units = [[draw.randrange(3) for _ in range(draw.randint(0, 4))] for _ in range(12)]
        units.append([0, 2])
        assert krippendorff_alpha(units, 3, level) == pytest.approx(by_pairs(units, 3, level))


@pytest.mark.parametrize("level", LEVELS)
def test_its_ends(level: Literal["nominal", "ordinal"]) -> None:
    assert krippendorff_alpha([[0, 0], [1, 1], [2, 2, 2]], 3, level) == 1
    assert krippendorff_alpha([[0, 0], [0, 0]], 3, level) is None
    assert krippendorff_alpha([[0], [1], []], 3, level) is None
    assert krippendorff_alpha([], 3, level) is None


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),  # Newcombe (1998), Table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 - right / n, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)
