"""A table's report: the cells of its sweep, of the runs that are finished, beside the paper's values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorachains.errors import LorachainsError
from lorachains.report import cells as shown
from lorachains.report.assembly import Report, report_of_cells
from lorachains.report.layout import Layout
from lorachains.report.published import read_published
from lorachains.report.reading import Run, read_runs
from lorachains.reproduce.runs import Cell, Table


def report(table: Table) -> Report:
    """The report of what is finished; a cell with fewer runs than it should have says so.

    Raises:
        LorachainsError: no run is finished, or a metric that the sweep names is in no finished run.
    """
    sweep = table.sweep
    runs, left_out = read_runs([run.folder.path for run in table.runs if run.folder.config.is_file()])
    layout = Layout(over=sweep.over, by=sweep.by)
    by_folder = {run.path.resolve(): run for run in runs}
    found = [_cell(own, by_folder, layout, sweep.x) for own in table.cells]
    metrics = {cell.column: cell.metric for cell in found if cell}
    cells = [cell or _empty(own, metrics) for own, cell in zip(table.cells, found, strict=True)]
    theirs = read_published(sweep.published, sweep.table) if sweep.published else []
    unfinished = [run for run in runs if run.metrics is None]
    rows, columns = ([part.label for part in parts] for parts in (sweep.rows, sweep.columns))
    made = report_of_cells(
        cells, rows, columns, pairs(cells, sweep.against), unfinished, left_out,
        title=f"{sweep.name} ({sweep.size}): {sweep.title}", also=["run/seconds"], x=sweep.x, by=sweep.by,
        theirs=theirs,
    )  # fmt: skip
    notes = [f"{label}: not run: {why}" for label, why in sweep.left_out.items()]
    return replace(made, tables=[replace(t, notes=[*t.notes, *notes]) if t.name == "paper" else t for t in made.tables])


def pairs(cells: Sequence[shown.Cell], against: Mapping[str, str]) -> list[tuple[shown.Cell, shown.Cell]]:
    """The cells of rows or columns that are compared with another, each with that one's."""
    found = {(cell.row, cell.column): cell for cell in cells if cell.runs}
    result = []
    for (row, column), cell in found.items():
        base = (against[row], column) if row in against else (row, against.get(column, column))
        if base != (row, column) and base in found:
            result.append((cell, found[base]))
    return result


def _cell(own: Cell, by_folder: Mapping[Path, Run], layout: Layout, x: str | None) -> shown.Cell | None:
    """The cell of a report; `None` if none of its runs is begun."""
    runs = [run for of in own.runs if (run := by_folder.get(of.folder.path.resolve()))]
    if not runs:
        return None
    metric = (own.metric or next((name for run in runs if (name := run.metric())), "loss")).removeprefix("test/")
    if wrong := next((run for run in runs if run.metrics and run.result("test", metric) is None), None):
        where = f"{own.row.label}, {own.column.label}"
        raise LorachainsError(f"{wrong.path}: metrics.json has no {own.metric or metric}, which {where} shows")
    options = {layout.candidate(run) for run in runs}
    cell = shown.make_cell(own.row.label, own.column.label, ["method", *([x] if x else [])], metric, runs, layout,
                           _asked(own), options)  # fmt: skip
    return cell if len(runs) == len(own.runs) else replace(cell, complete=False)


def _empty(own: Cell, metrics: Mapping[str, str]) -> shown.Cell:
    """The cell of which no run is begun."""
    metric = own.metric or metrics.get(own.column.label, "loss")
    return shown.Cell(own.row.label, own.column.label, ["method"], metric.removeprefix("test/"), {}, None,
                      _asked(own), complete=False)  # fmt: skip


def _asked(own: Cell) -> int:
    """How many seeds a cell's runs have. Of several in a run's overrides the last counts."""
    given = [[text for text in run.overrides if text.startswith("seed=")] for run in own.runs]
    return max(1, len({seeds[-1] for seeds in given if seeds}))
