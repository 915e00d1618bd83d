"""How far annotators agree, and how sure a share is."""

from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np


def krippendorff_alpha(
    units: Sequence[Sequence[int]], categories: int, level: Literal["nominal", "ordinal"]
) -> float | None:
    """Krippendorff's α (2011, *Computing Krippendorff's Alpha-Reliability*): 1 is full agreement, 0 that of chance.

    Args:
        units: what was rated, each with the ratings it got, from 0 to `categories` - 1. They may differ in number.
        level: whether all differences count alike, or more with more ratings between them.

    Returns:
        `None` where α is not defined: no unit has two ratings, or all ratings are the same.
    """
    coincidences = np.zeros((categories, categories))
    for unit in units:
        if len(unit) > 1:
            counts = np.array([Counter(unit)[c] for c in range(categories)], dtype=float)
            coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(1)
    distance = _distance(totals, level)
    expected = float((np.outer(totals, totals) * distance).sum())
    if expected == 0:
        return None
    return 1 - (float(totals.sum()) - 1) * float((coincidences * distance).sum()) / expected


def _distance(totals: np.ndarray, level: str) -> np.ndarray:
    """The squared difference of each two categories."""
    if level == "nominal":
        return 1 - np.eye(len(totals))
    places = np.cumsum(totals) - totals / 2  # the middle of each category's ranks
    return np.subtract.outer(places, places) ** 2


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen in n independent draws."""
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = share + z2 / (2 * n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n * n))) ** 0.5
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))
