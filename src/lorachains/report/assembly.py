"""A whole report: from runs to its tables and figures, and to its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lorachains.errors import LorachainsError
from lorachains.report import formats, tables
from lorachains.report.cells import Cell, make_cells
from lorachains.report.comparing import Comparison, compare_pairs, pair_rows
from lorachains.report.figures import draw_all, to_bytes
from lorachains.report.layout import Layout
from lorachains.report.page import page
from lorachains.report.published import Published, read_published
from lorachains.report.reading import Run
from lorachains.run_folder import write_whole


@dataclass(frozen=True)
class Report:
    """What is shown.

    Attributes:
        comparisons: with the baseline, at the best epoch ("test") and at the last ("test_last"); empty without one.
        figures: by name, each with its title.
    """

    title: str
    cells: Sequence[Cell]
    comparisons: Mapping[str, Sequence[Comparison]]
    tables: Sequence[tables.Table]
    figures: Mapping[str, tuple[str, Figure]]


def make_report(
    runs: Sequence[Run], left_out: Mapping[Path, str], layout: Layout, *, title: str = "Results",
    also: Sequence[str] = (), baseline: Mapping[str, Any] | None = None, x: str | None = None,
    published: Path | None = None, table: str | None = None,
) -> Report:  # fmt: skip
    """The tables and figures of the runs. The arguments are those of conf/report.yaml.

    Raises:
        LorachainsError: no run has one of the keys, the runs don't fit into the layout, there is no such baseline, or
            the paper's file is wrong.
    """
    for key in [*also, *([x] if x else [])]:
        if all(run.value(key) is None for run in runs):
            raise LorachainsError(f"no run has {key}, which also or x asks for")
    theirs = read_published(published, table) if published else []
    cells, more_left_out = make_cells(runs, layout)
    pairs = pair_rows(cells, baseline) if baseline else []
    unfinished = [run for run in runs if run.metrics is None]
    order = tables.labels(cells, theirs, [base.row for _, base in pairs])
    out = {**left_out, **more_left_out}
    return report_of_cells(
        cells, *order, pairs, unfinished, out, title=title, also=also, x=x, by=layout.by, theirs=theirs
    )


def report_of_cells(
    cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], pairs: Sequence[tuple[Cell, Cell]],
    unfinished: Sequence[Run], left_out: Mapping[Path, str],
    *, title: str, also: Sequence[str], x: str | None, by: str, theirs: Sequence[Published],
) -> Report:  # fmt: skip
    """The tables and figures of these cells.

    Args:
        rows, columns: their labels, in order.
        pairs: cells, each with the one that it is compared with.
        theirs: the paper's values.
    """
    found = {split: compare_pairs(pairs, split) for split in ("test", "test_last")} if pairs else {}
    shown = [tables.scores(cells, rows, columns, split) for split in ("test", "test_last")]
    shown += [tables.comparisons(own, theirs, split) for split, own in found.items()]
    shown += [tables.beside_paper(cells, theirs)] if theirs else []
    if any(len(cell.candidates) > 1 for cell in cells):
        shown.append(tables.choices(cells, by))
    shown += [tables.others(cells, rows, columns, key) for key in also]
    if unfinished or left_out:
        shown.append(tables.missing(unfinished, left_out))
    return Report(title, cells, found, shown, draw_all(cells, rows, columns, theirs, x))


def write_report(report: Report, folder: Path) -> None:
    """Writes `report.html`, `report.md`, `report.tex`, `cells.csv`, `runs.csv`, `comparisons.csv` and `figures/`.

    Those of an earlier report in the folder don't stay.
    """
    if (folder / "report.html").is_file():
        for old in (*folder.glob("figures/*.svg"), *folder.glob("figures/*.png"), folder / "comparisons.csv"):
            old.unlink(missing_ok=True)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawings = {}
    for name, (title, figure) in report.figures.items():
        svg = to_bytes(figure, "svg")
        drawings[name] = title, svg
        (folder / "figures" / f"{name}.svg").write_bytes(svg)
        (folder / "figures" / f"{name}.png").write_bytes(to_bytes(figure, "png"))
    links = {title: f"figures/{name}.png" for name, (title, _) in report.figures.items()}
    texts = {
        "report.html": page(report.title, report.tables, drawings),
        "report.md": formats.markdown(report.title, report.tables, links),
        "report.tex": formats.latex(report.tables),
        "cells.csv": formats.cells_csv(report.cells),
        "runs.csv": formats.runs_csv(report.cells),
    } | ({"comparisons.csv": formats.comparisons_csv(report.comparisons)} if report.comparisons else {})
    for name, text in texts.items():
        write_whole(folder / name, text)
