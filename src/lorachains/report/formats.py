"""Tables as Markdown, LaTeX (booktabs) and text for a terminal, and the numbers behind them as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from lorachains.report.cells import Cell
from lorachains.report.comparing import Comparison
from lorachains.report.statistics import spread
from lorachains.report.tables import Table

LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "—": "--",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "<": r"$<$",
    ">": r"$>$",
}


def markdown(title: str, tables: Sequence[Table], figures: Mapping[str, str]) -> str:
    """A page of tables, and of figures by their titles and files."""
    parts = [f"# {title}", *(_markdown_table(table) for table in tables)]
    return "\n\n".join([*parts, *(f"![{name}]({file})" for name, file in figures.items())]) + "\n"


def latex(tables: Sequence[Table]) -> str:
    r"""`table` environments, to be `\input` into a document that uses the package booktabs."""
    return "% \\usepackage{booktabs}\n" + "\n".join(map(_latex_table, tables))


def latex_text(text: str) -> str:
    """The text with all that is special in LaTeX escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def terminal(table: Table) -> Group:
    """For a rich console."""
    result = RichTable(title=Text(table.title), title_justify="left")
    for i, name in enumerate(table.header):
        result.add_column(Text(name), overflow="fold", justify="left" if i == 0 else "right")
    for row in table.rows:
        result.add_row(*map(Text, row))
    return Group(result, *(Text(note, style="dim") for note in table.notes), "")


def cells_csv(cells: Sequence[Cell]) -> str:
    """A line for each cell, metrics in their own units: shares from 0 to 1, losses in nats."""
    return _csv([
        {
            "row": c.row, "column": c.column, "metric": c.metric, "chosen": c.chosen, "seeds": len(c.runs),
            "seeds_asked": c.asked, "complete": c.complete,
            "unfinished": sum(x.unfinished for x in c.candidates.values()),
            **{f"{split}_{k}": v for split in ("test", "test_last") for k, v in _moments(c.results(split)).items()},
        }
        for c in cells
    ])  # fmt: skip


def runs_csv(cells: Sequence[Cell]) -> str:
    """A line for each finished run, also those of settings that weren't chosen."""
    return _csv([
        {
            "row": cell.row, "column": cell.column, "settings": name, "chosen": name == cell.chosen,
            "seed": "/".join(seed), "metric": cell.metric, "folder": run.path,
            **{split: run.result(split, cell.metric) for split in ("val", "test", "test_last")},
            "val_loss": run.result("val", "loss"),
        }
        for cell in cells for name, candidate in cell.candidates.items() for seed, run in candidate.runs.items()
    ])  # fmt: skip


def comparisons_csv(found: Mapping[str, Sequence[Comparison]]) -> str:
    """A line for each comparison at the best epoch ("test") and the last ("test_last"), metrics in their own units."""
    return _csv([
        {
            "split": split, "row": c.cell.row, "column": c.cell.column, "baseline": c.baseline.row, "seeds": c.paired.n,
            "difference": c.paired.difference, "relative": c.paired.gain, "low": (c.paired.interval or (None,) * 2)[0],
            "high": (c.paired.interval or (None,) * 2)[1], "d_z": c.paired.effect, "p_t": c.paired.t, "p_t_holm": c.t,
            "p_wilcoxon": c.paired.wilcoxon, "p_wilcoxon_holm": c.wilcoxon, "note": c.paired.note,
        }
        for split, own in found.items() for c in own if c.paired
    ])  # fmt: skip


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _moments(results: Mapping[Any, float]) -> dict[str, float | None]:
    values = list(results.values())
    return {"mean": fmean(values) if values else None, "std": spread(values)}


def _markdown_table(table: Table) -> str:
    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown_text(text) for text in texts) + " |"

    ruler = "|" + "|".join([" --- ", *[" ---: "] * (len(table.header) - 1)]) + "|"
    rows = [line(table.header), ruler, *map(line, table.rows)]
    return (
        f"## {_markdown_text(table.title)}\n\n"
        + "\n".join(rows)
        + "".join(f"\n\n{_markdown_text(n)}" for n in table.notes)
    )


def _markdown_text(text: str) -> str:
    escaped = "".join(f"\\{c}" if c in "\\|*_`<[" else c for c in text)
    return escaped.replace("\n", " ")


def _latex_table(table: Table) -> str:
    lines = [" & ".join(map(latex_text, row)) + r" \\" for row in [table.header, *table.rows]]
    notes = [rf"\par\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.title)}}}", rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule", lines[0], r"\midrule", *lines[1:],
        r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}", "",
    ])  # fmt: skip
