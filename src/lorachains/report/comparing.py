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
    """All rows but the baselines', see `pair_rows`. A row's columns are one family of tests (Holm)."""
    return compare_pairs(pair_rows(cells, baseline), split)


def pair_rows(cells: Sequence[Cell], baseline: Mapping[str, Any]) -> list[tuple[Cell, Cell]]:
    """Each cell of all rows but the baselines', with the one that it is compared with.

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
    found = {(cell.row, cell.column): cell for cell in cells}
    pairs = []
    for row in rows:
        if row not in bases:
            base = _baseline(row, rows[row], bases, baseline)
            own = [cell for cell in cells if cell.row == row and (base, cell.column) in found]
            pairs += [(cell, found[base, cell.column]) for cell in own]
    return pairs


def compare_pairs(pairs: Sequence[tuple[Cell, Cell]], split: str = "test") -> list[Comparison]:
    """Cells with their baselines. All of one row against another, or of one column, are one family of tests (Holm)."""
    families: dict[tuple[str, str], list[Comparison]] = {}
    for cell, base in pairs:
        labels = (cell.row, base.row) if cell.column == base.column else (cell.column, base.column)
        ours, theirs = cell.results(split), base.results(split)
        seeds = sorted(ours.keys() & theirs.keys())
        paired = compare([ours[s] for s in seeds], [theirs[s] for s in seeds]) if seeds else None
        families.setdefault(labels, []).append(Comparison(cell, base, paired))
    return [c for family in families.values() for c in _corrected(family)]


def verdict(comparison: Comparison, published: Sequence[Published]) -> str:
    """Whether the difference that a paper gives between the two rows is found here; empty if it gives none."""
    values = {(same_label(v.row), same_label(v.column)): v.value for v in published}
    pair = (comparison.cell, comparison.baseline)
    theirs, base = (values.get((same_label(cell.row), same_label(cell.column))) for cell in pair)
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


def _corrected(family: Sequence[Comparison]) -> list[Comparison]:
    ts = holm([c.paired.t if c.paired else None for c in family])
    ranks = holm([c.paired.wilcoxon if c.paired else None for c in family])
    return [replace(c, t=t, wilcoxon=w) for c, t, w in zip(family, ts, ranks, strict=True)]
