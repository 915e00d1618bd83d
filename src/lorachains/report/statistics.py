"""Mean and spread over seeds, and two methods compared seed by seed: paired tests, effect size, interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

LEAST_PAIRS = 3
"""Of fewer pairs nothing is tested: two fit a spread to one degree of freedom."""
LEAST_RANKS = 6
"""Of fewer pairs that differ no p-value of a two-sided signed-rank test is below 0.05: the least is 2 / 2ⁿ."""


@dataclass(frozen=True)
class Paired:
    """One method less another, over the seeds that both have.

    Attributes:
        n: pairs.
        difference: the mean difference, in the metric's unit.
        gain: the difference in parts of the other's mean; `None` where that is 0.
        interval: a 95% bootstrap interval (percentiles) of the mean difference.
        effect: Cohen's d of paired differences, d_z: their mean in standard deviations (ddof = 1).
        t: p-value of the two-sided paired t-test.
        wilcoxon: p-value of the two-sided Wilcoxon signed-rank test; pairs that are equal don't count.
        note: why a p-value is missing; or empty.
    """

    n: int
    difference: float
    gain: float | None
    interval: tuple[float, float] | None
    effect: float | None
    t: float | None
    wilcoxon: float | None
    note: str


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation (ddof = 1); `None` of a single value."""
    return stdev(values) if len(values) > 1 else None


def compare(ours: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Paired:
    """Paired values, at least one pair.

    Args:
        seed: of the bootstrap's draws.
    """
    # Scores are shares of some hundred rows: what differs by less is rounding, and would make ties unequal.
    differences = np.round(np.subtract(ours, baseline), 12)
    n, mean, base = len(differences), float(differences.mean()), fmean(baseline)
    gain = mean / base if base else None
    if n < LEAST_PAIRS:
        return Paired(n, mean, gain, None, None, None, None, "n too small")
    if np.ptp(differences) == 0:
        return Paired(n, mean, gain, None, None, None, None, "all differences are equal")
    draws = stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(seed))
    interval = (float(draws.confidence_interval.low), float(draws.confidence_interval.high))
    effect = mean / float(differences.std(ddof=1))
    t = float(stats.ttest_rel(ours, baseline).pvalue)
    unequal = int(np.count_nonzero(differences))
    if unequal < LEAST_RANKS:
        least = f"n too small for Wilcoxon: with {unequal} unequal pairs p ≥ {2.0 ** (1 - unequal):.4g}"
        return Paired(n, mean, gain, interval, effect, t, None, least)
    return Paired(n, mean, gain, interval, effect, t, float(stats.wilcoxon(differences).pvalue), "")


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down adjustment of the p-values of one family; what is `None` was not tested."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted, least = list[float | None]([None] * len(p_values)), 0.0
    for rank, (p, i) in enumerate(tested):
        adjusted[i] = least = max(least, min(1.0, (len(tested) - rank) * p))
    return adjusted
