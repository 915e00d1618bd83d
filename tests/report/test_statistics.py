"""Against scipy's own answers, the formulas by hand, and the closed testing procedure that Holm's is a shortcut of."""

from itertools import combinations
from math import sqrt
from statistics import mean, stdev

import pytest
from scipy import stats

from lorachains.report.statistics import compare, holm, spread

OURS = [0.742, 0.751, 0.729, 0.760, 0.748, 0.733, 0.755]
BASE = [0.725, 0.730, 0.731, 0.741, 0.722, 0.729, 0.728]


def test_a_fixture_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 / (1 / √3) with two degrees of freedom."""
    found = compare([0.51, 0.52, 0.53], [0.50, 0.50, 0.50])
    assert found.n == 3
    assert [found.difference, found.gain] == pytest.approx([0.02, 0.04])
    assert found.effect == pytest.approx(2)
    t = 2 * sqrt(3)
    assert found.t == pytest.approx(1 - t / sqrt(t * t + 2))  # the t distribution of two degrees of freedom
    assert found.wilcoxon is None
    assert "p ≥ 0.25" in found.note


def test_against_scipy() -> None:
    found = compare(OURS, BASE)
    assert found.t == pytest.approx(stats.ttest_rel(OURS, BASE).pvalue)
    assert found.t == pytest.approx(stats.ttest_1samp([a - b for a, b in zip(OURS, BASE, strict=True)], 0).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(OURS, BASE, method="exact").pvalue)
    differences = [a - b for a, b in zip(OURS, BASE, strict=True)]
    assert found.effect == pytest.approx(mean(differences) / stdev(differences))
    assert found.gain == pytest.approx(mean(OURS) / mean(BASE) - 1)
    assert found.note == ""


def test_the_signed_rank_test_by_all_signs() -> None:
    """Its p-value is the share of the 2ⁿ signs whose rank sum is as far from the middle."""
    differences = [round(a - b, 12) for a, b in zip(OURS, BASE, strict=True)]
    ranks = stats.rankdata([abs(d) for d in differences])
    middle = ranks.sum() / 2
    seen = abs(sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) - middle)
    sums = [sum(chosen) for k in range(8) for chosen in combinations(ranks, k)]
    assert compare(OURS, BASE).wilcoxon == pytest.approx(sum(abs(s - middle) >= seen - 1e-9 for s in sums) / 2**7)


def test_the_interval_is_the_bootstraps() -> None:
    """Seven differences are few enough that the percentiles of 9999 resamples are near those of fresh ones."""
    found = compare(OURS, BASE)
    assert found.interval is not None
    low, high = found.interval
    assert low < found.difference < high
    draws = stats.bootstrap(([a - b for a, b in zip(OURS, BASE, strict=True)],), mean, method="percentile", rng=1,
                            vectorized=False, n_resamples=4000).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((draws.low, draws.high), abs=1e-3)
    assert compare(OURS, BASE) == found
    assert compare([a - 1 for a in OURS], [b - 1 for b in BASE]).interval == pytest.approx(found.interval)


def test_nothing_is_tested_where_there_is_nothing_to_test() -> None:
    assert compare([0.5, 0.6], [0.4, 0.4]).note == "n too small"
    assert compare([0.5, 0.6], [0.4, 0.4]).t is None
    equal = compare([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert (equal.t, equal.effect, equal.interval, equal.note) == (None, None, None, "all differences are equal")
    assert compare([0.5], [0.0]).gain is None
    six = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert compare([*six, 0.7], [*[0.0] * 6, 0.7]).wilcoxon == pytest.approx(2 / 2**6)  # the equal pair doesn't count
    assert compare([*six[:5], 0.7], [*[0.0] * 5, 0.7]).wilcoxon is None


def test_holm_is_the_closure_of_bonferroni() -> None:
    """Adjusted, each p-value is the largest of Bonferroni's over all families that it is in."""
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    closed = [
        max(min(1, len(f) * min(p[j] for j in f)) for k in range(1, 6) for f in combinations(range(5), k) if i in f)
        for i in range(5)
    ]
    assert holm(p) == pytest.approx(closed)
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([]) == []


def test_spread_is_the_samples() -> None:
    assert spread([1.0]) is None
    assert spread([1.0, 2.0, 3.0]) == 1.0
