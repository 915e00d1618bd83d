"""The page is well-formed, needs nothing else, and fits on a phone."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lorachains.report.assembly import Report, make_report, write_report
from lorachains.report.layout import Layout
from lorachains.report.page import page
from lorachains.report.reading import read_runs
from lorachains.report.tables import Table
from tests.report.folders import make_grid, make_run

VOID = {"meta", "br", "img"}
WIDTH = 360


class Reader(HTMLParser):
    """Checks that elements nest, and keeps texts of table cells and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.tags = Counter[str]()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Long names, a run that isn't finished, and one that is damaged."""
    root = tmp_path_factory.mktemp("runs")
    make_grid(root)
    make_run(root / "begun", "cola", 1, None, task="a_task_with_a_name_that_is_longer_than_a_phone_is_wide")
    make_run(root / "wide", "zero_shot", 0, task="a_task_with_a_name_that_is_longer_than_a_phone_is_wide")
    runs, left_out = read_runs([root])
    left_out[Path("/a/folder") / ("deep/" * 30)] = "<script>alert(1)</script> & \"'" + "no spaces" * 20
    return make_report(
        runs,
        left_out,
        Layout(),
        title="<b>Runs</b> & {{body}}",
        also=["run/seconds"],
        baseline={"method": "lora"},
        x="train/links",
    )


@pytest.fixture(scope="module")
def text(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(report, folder)
    names = {"report.html", "report.md", "report.tex", "cells.csv", "runs.csv", "comparisons.csv", "figures"}
    assert {file.name for file in folder.iterdir()} == names
    drawn = {file.name for file in (folder / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in report.figures for kind in ("png", "svg")}
    kinds = {name.split("-")[0] for name in report.figures}
    assert kinds == {"scores", "along", "by", "validation", "training"}
    return (folder / "report.html").read_text(encoding="utf-8")


def test_all_tables_are_there_word_by_word(report: Report, text: str) -> None:
    rows = [list(row) for table in report.tables for row in (table.header, *table.rows)]
    reader = Reader(text)
    assert reader.rows == rows
    assert (reader.tags["table"], reader.tags["svg"]) == (len(report.tables), len(report.figures))
    assert [table.name for table in report.tables] == [
        "test", "test-last", "against-baseline", "against-baseline-last", "chosen", "run-seconds", "missing",
    ]  # fmt: skip


def test_nothing_is_fetched_and_nothing_is_run(text: str) -> None:
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe", "object"} & reader.tags.keys()
    names = set(re.findall(r'\bxmlns(?::\w+)?="([^"]*)"', text))
    rest = re.sub(r'\bxmlns(?::\w+)?="[^"]*"', "", text)
    assert all(name.startswith("http://www.w3.org/") for name in names)
    assert not re.search(r"https?:|\bsrc=|@import|url\((?!#)", rest)
    assert "default-src 'none'" in text


def test_links_and_references_meet_one_element_each(text: str) -> None:
    ids = Reader(text).ids
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used
    assert used <= set(ids)


def test_drawings_take_the_pages_colours(text: str) -> None:
    assert "currentColor" in text
    assert "#010203" not in text
    assert "#ffffff" not in text


def test_texts_are_escaped() -> None:
    nasty = "</table><script>alert(1)</script> & {{title}}"
    made = page(nasty, [Table("t", nasty, ["", nasty], [[nasty, nasty]], [nasty])], {})
    reader = Reader(made)
    assert reader.rows == [["", nasty], [nasty, nasty]]
    assert "script" not in reader.tags


def measured(text: str, folder: Path, expression: str, options: Sequence[str] = ()) -> dict[str, object]:
    """What a browser says of the page on a screen as wide as a phone's. The page itself runs no script."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome on this machine")
    frame = folder / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe id="f" style="width: {WIDTH}px; height: 800px; border: 0" srcdoc="{escape(text)}">'
        "</iframe><script>onload = () => { const d = document.getElementById('f').contentDocument;"
        f"document.body.innerHTML = '<pre>' + JSON.stringify({expression}) + '</pre>'; }}</script>",
        encoding="utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *options]
    command = [browser, *flags, "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert found, done.stdout[-500:]
    said: dict[str, object] = json.loads(found[1])
    return said


def test_a_phone_shows_it_without_scrolling_sideways(report: Report, text: str, tmp_path: Path) -> None:
    visible = "[...d.querySelectorAll('table')].filter(t => t.getBoundingClientRect().height > 0)"
    beyond = f"e => !e.closest('.wide table, svg') && e.getBoundingClientRect().right > {WIDTH}"
    said = measured(text, tmp_path, f"""{{
        width: d.documentElement.clientWidth, scroll: d.documentElement.scrollWidth,
        beyond: [...d.querySelectorAll('body *')].filter({beyond}).map(e => e.outerHTML.slice(0, 80)),
        rows: {visible}.map(t => t.rows.length),
        small: [...d.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width < 250).length,
        dark: getComputedStyle(d.documentElement).backgroundColor, scripts: d.scripts.length,
    }}""")  # fmt: skip
    assert WIDTH - 20 <= int(str(said["width"])) <= WIDTH  # less a scroll bar
    assert said["scroll"] == said["width"]
    assert said["beyond"] == []
    assert said["rows"] == [len(table.rows) + 1 for table in report.tables]
    assert (said["small"], said["scripts"], said["dark"]) == (0, 0, "rgb(255, 255, 255)")


def test_a_dark_screen_gets_a_dark_page(text: str, tmp_path: Path) -> None:
    style = "getComputedStyle(d.documentElement)"
    said = measured(
        text, tmp_path, f"{{page: {style}.backgroundColor, ink: {style}.color}}",
        ["--blink-settings=preferredColorScheme=0"],
    )  # fmt: skip
    page_colour, ink = (sum(map(int, re.findall(r"\d+", str(said[key])))) for key in ("page", "ink"))
    assert page_colour < 150
    assert ink > 600
