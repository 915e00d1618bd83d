"""A table's report: its finished runs under the labels of the paper, beside the paper's values."""

from collections.abc import Sequence
from pathlib import Path

from lorachains.report.assembly import Report, make_report
from lorachains.report.layout import Layout, kind
from lorachains.report.reading import Run, read_runs
from lorachains.reproduce.runs import Table


def report(table: Table) -> Report:
    """The report of what is finished; a cell with fewer runs than it should have says so.

    Raises:
        LorachainsError: no run is finished.
    """
    sweep = table.sweep
    runs, left_out = read_runs([run.folder.path for run in table.runs if run.folder.config.is_file()])
    seeds = {text for run in table.cells[0].runs for text in run.overrides if text.startswith("seed=")}
    layout = Layout(over=sweep.over, n_seeds=len(seeds), labels=labels(table, runs, Layout(over=sweep.over)))
    also = dict.fromkeys(["run/seconds", *(cell.metric for cell in table.cells if cell.metric)])
    published = sweep.published if sweep.published.is_file() else None
    return make_report(
        runs, left_out, layout, title=f"{sweep.name} ({sweep.size}): {sweep.title}", also=list(also),
        baseline=sweep.baseline, x=sweep.x, published=published, table=sweep.table,
    )  # fmt: skip


def labels(table: Table, runs: Sequence[Run], layout: Layout) -> dict[str, str]:
    """What the sweep calls the rows and columns to which the layout would give names made of settings."""
    keys = layout.row_keys(runs)
    by_folder = {run.path.resolve(): run for run in runs}
    named = dict[str, str]()
    for cell in table.cells:
        for own in cell.runs:
            if (run := by_folder.get(Path(own.folder.path).resolve())) is not None:
                named.setdefault(layout.row(run, keys[kind(run)]), cell.row.label)
                named.setdefault(layout.column(run), cell.column.label)
    return named
