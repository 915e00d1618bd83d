"""Each row against its baseline, column by column, and with what a paper says of the two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorachains.errors import LorachainsError
from lorachains.report.cells import Cell
from lorachains.report.published import Published, same_label
from lorachains.report.reading import Run
from lorachains.report.statistics import Paired, compare, holm

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """One cell against that of the baseline's row in the same column.

    Attributes:
        paired: `None` if the two have no seed in common.
        t: the p-value of `paired`, corrected for the number of the row's columns; so is `wilcoxon`.
    """

    cell: Cell
    baseline: Cell
    paired: Paired | None
    t: float | None = None
    wilcoxon: float | None = None


def compare_rows(cells: Sequence[Cell], baseline: Mapping[str, Any], split: str = "test") -> list[Comparison]:
    """All rows but the baselines'. A row's columns are one family of tests (Holm).

    Args:
        baseline: settings of the baseline's rows, as {"method": "lora"}. Of several such rows, a row's baseline is the
            one that differs from it in these settings alone.

    Raises:
        LorachainsError: no row has these settings, or it isn't clear which one is meant.
    """
    rows = _rows(cells)
    bases = {row: own for row, own in rows.items() if all(_has(_any([cell]), baseline) for cell in own)}
    if not bases:
        told = " ".join(f"{key}={value}" for key, value in baseline.items())
        raise LorachainsError(f"baseline: no row has {told}; the rows are {'; '.join(rows)}")
    result = []
    for row in rows:
        if row not in bases:
            base = _baseline(row, rows[row], bases, baseline)
            result += _family([cell for cell in cells if cell.row == row], base, cells, split)
    return result


def verdict(comparison: Comparison, published: Sequence[Published]) -> str:
    """Whether the difference that a paper gives between the two rows is found here; empty if it gives none."""
    values = {(same_label(v.row), same_label(v.column)): v.value for v in published}
    column = same_label(comparison.cell.column)
    theirs, base = (values.get((same_label(cell.row), column)) for cell in (comparison.cell, comparison.baseline))
    if theirs is None or base is None or comparison.paired is None:
        return ""
    if (theirs - base) * comparison.paired.difference <= 0:
        return "no" if theirs != base else "the paper's are equal"
    if comparison.t is None:
        return "same sign, not tested"
    return "yes" if comparison.t < SIGNIFICANT else "same sign, not significant"


def _rows(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells with finished runs, by their row."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.runs:
            rows.setdefault(cell.row, []).append(cell)
    return rows


def _has(run: Run, settings: Mapping[str, Any]) -> bool:
    return all(str(run.value(key)) == str(value) for key, value in settings.items())


def _baseline(row: str, own: Sequence[Cell], bases: Mapping[str, Sequence[Cell]], named: Mapping[str, Any]) -> str:
    """The only one, or the one that has the row's values of all other settings that its label is made of."""
    near = [
        base for base, theirs in bases.items()
        if len(bases) == 1 or all(_any(theirs).value(k) == _any(own).value(k) for k in theirs[0].keys if k not in named)
    ]  # fmt: skip
    if len(near) != 1:
        raise LorachainsError(f"baseline: {'; '.join(bases)} could each be that of {row}: name more of its settings")
    return near[0]


def _any(cells: Sequence[Cell]) -> Run:
    """One of the finished runs of a row."""
    return next(iter(cells[0].runs.values()))


def _family(own: Sequence[Cell], base: str, cells: Sequence[Cell], split: str) -> list[Comparison]:
    result = []
    for cell in own:
        for other in (c for c in cells if (c.row, c.column) == (base, cell.column)):
            ours, theirs = cell.results(split), other.results(split)
            seeds = sorted(ours.keys() & theirs.keys())
            paired = compare([ours[s] for s in seeds], [theirs[s] for s in seeds]) if seeds else None
            result.append(Comparison(cell, other, paired))
    ts = holm([c.paired.t if c.paired else None for c in result])
    ranks = holm([c.paired.wilcoxon if c.paired else None for c in result])
    return [replace(c, t=t, wilcoxon=w) for c, t, w in zip(result, ts, ranks, strict=True)]
