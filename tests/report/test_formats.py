"""What is special in a format is escaped; the numbers behind the tables come out as they are."""

import csv
import io
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from lorachains.report.cells import make_cells
from lorachains.report.comparing import compare_rows
from lorachains.report.formats import cells_csv, comparisons_csv, latex, latex_text, markdown, runs_csv, terminal
from lorachains.report.layout import Layout
from lorachains.report.reading import read_runs
from lorachains.report.tables import Table
from tests.report.folders import make_grid

NASTY = r"a_b & 5% of $x$ #1 {y} ~ ^ \z | <b> *c* `d` [e](f)"
TABLE = Table("nasty", NASTY, ["", NASTY], [[NASTY, "1.00 ± 0.10"], ["x", "—"]], [NASTY])


def test_latex_escapes_what_is_special() -> None:
    assert latex_text("&%$#_{}") == r"\&\%\$\#\_\{\}"
    assert latex_text("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert latex_text("−1 ± 2") == r"$-$1 $\pm$ 2"


def test_latex_has_as_many_columns_in_each_row() -> None:
    text = latex([TABLE])
    lines = text.splitlines()
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    assert [line.replace(r"\&", "").count("&") for line in body if line != r"\midrule"] == [1, 1, 1]
    assert r"\begin{tabular}{lr}" in lines
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")


def test_markdown_shows_the_texts_as_they_are() -> None:
    """Read back by a Markdown parser."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown("T", [TABLE], {"F": "figures/f.png"}))
    shown = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert shown == ["T", NASTY, "", NASTY, NASTY, "1.00 ± 0.10", "x", "—", NASTY, "F"]
    assert sum(token.type == "tr_open" for token in tokens) == 3


def test_a_terminal_shows_all() -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal(Table("t", "Title", ["", "c"], [["[bold]", "1"]], ["[red] note"])))
    text = console.export_text()
    assert all(part in text for part in ("Title", "[bold]", "[red] note"))


def test_csv_holds_the_numbers(tmp_path: Path) -> None:
    cells, _ = make_cells(read_runs([make_grid(tmp_path)])[0], Layout())
    found = {split: compare_rows(cells, {"method": "lora"}, split) for split in ("test", "test_last")}
    by_cell, by_run, by_comparison = (
        list(csv.DictReader(io.StringIO(text))) for text in (cells_csv(cells), runs_csv(cells), comparisons_csv(found))
    )
    assert (len(by_cell), len(by_run), len(by_comparison)) == (6, 90, 6)
    for row in by_cell:
        own = [r for r in by_run if (r["row"], r["column"], r["chosen"]) == (row["row"], row["column"], "True")]
        assert len(own) == int(row["seeds"]) == 5
        assert float(row["test_mean"]) == pytest.approx(sum(float(r["test"]) for r in own) / 5)
    first = found["test"][0]
    assert first.paired is not None
    assert float(by_comparison[0]["p_t"]) == first.paired.t
    assert float(by_comparison[0]["p_t_holm"]) == first.t
    assert cells_csv([]) == ""
