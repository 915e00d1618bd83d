"""Filled sheets give back the systems' rates; what is damaged, doubled or foreign is named by file and line."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lorachains.answers import Answer
from lorachains.errors import LorachainsError
from lorachains.human import Verdict, make_sheets, read_sheets, summarise, wilson, write_sheets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sheets of three prompts and two systems."""
    systems = {s: [Answer("t", f"p {i}\n\u2028=x", f"{s} {i}", None, "f:1") for i in range(3)] for s in ("a", "b")}
    write_sheets(tmp_path, make_sheets(systems, annotators=2, prompts=3, seed=0))
    return tmp_path


def fill(folder: Path, annotator: int, rate: Callable[[str, str], str], delimiter: str = ",", **columns: str) -> Path:
    """Rates each response by its system and prompt, and saves the sheet as a spreadsheet does."""
    sheet = folder / "sheets" / f"annotator-{annotator}.csv"
    key = json.loads((folder / "key.json").read_text())["items"]
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["rating"] = rate(key[row["item"]]["system"], key[row["item"]]["prompt"])
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return sheet


def test_rates_intervals_and_agreement(folder: Path) -> None:
    def first(system: str, prompt: str) -> str:
        return "excellent" if system == "a" else "Pass " if "0" in prompt else "fail"

    def second(system: str, prompt: str) -> str:
        return "" if system == "b" and "2" in prompt else first(system, prompt)

    sheets = [fill(folder, 1, first), fill(folder, 2, second, delimiter=";")]
    summary = summarise(read_sheets(sheets, folder / "key.json"))
    assert summary["human/annotators"] == 2
    assert (summary["human/ratings"], summary["human/open"]) == (11, 1)
    assert (summary["a/excellent"], summary["a/pass"], summary["a/fail"]) == (1, 0, 0)
    assert (summary["b/excellent"], summary["b/pass"], summary["b/fail"]) == (0, 2 / 5, 3 / 5)
    assert (summary["b/fail_low"], summary["b/fail_high"]) == wilson(3 / 5, 3)  # three prompts, not five ratings
    assert summary["agreement/responses"] == 5
    assert summary["agreement/alpha_ordinal"] == summary["agreement/alpha_nominal"] == 1


def test_what_is_left_open_is_counted_not_guessed(folder: Path) -> None:
    sheet = fill(folder, 1, lambda system, prompt: "pass")
    lines = sheet.read_text().split("\n")
    sheet.write_text("\n".join(lines[:3]))  # the first row alone, which has two lines
    verdicts = read_sheets([sheet], folder / "key.json")
    assert [verdict.rating for verdict in verdicts].count(None) == 5
    summary = summarise(verdicts)
    assert (summary["human/ratings"], summary["human/open"]) == (1, 5)
    assert summary["agreement/alpha_ordinal"] is None
    assert {summary["a/prompts"], summary["b/prompts"]} == {0, 1}


def test_no_answer_no_rate() -> None:
    summary = summarise([Verdict(1, "a", "t", "p", None)])
    assert summary["a/pass"] is summary["a/pass_low"] is None


def test_the_forms_file_is_a_sheet(folder: Path) -> None:
    key = json.loads((folder / "key.json").read_text())["items"]
    mine = [name for name, owner in key.items() if owner["annotator"] == 2]
    (folder / "saved.csv").write_text("item,rating\n" + "".join(f"{name},fail\n" for name in mine))
    assert summarise(read_sheets([folder / "saved.csv"], folder / "key.json"))["a/fail"] == 1


def test_a_long_response_is_no_damage(folder: Path) -> None:
    sheet = fill(folder, 1, lambda *_: "fail")
    sheet.write_text(sheet.read_text().replace("a 1", "a" * 200_000))
    assert len(read_sheets([sheet], folder / "key.json")) == 6


HEAD = "item,prompt,response,rating\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "{0},p,r,pass\n{1},p,r,good\n", "s.csv:3: the rating is 'good': give fail, pass, excellent"),
        (HEAD + '{0},"p\nq",r,pass\n{1},p,r,good\n', "s.csv:4: the rating is 'good'"),
        (HEAD + "{0},p,r,pass\nffff,p,r,pass\n", "s.csv:3: item 'ffff' is not in"),
        (HEAD + "{0},p,r,pass\n\n{0},p,r,pass\n", "s.csv:4: item '{0}' was rated before, in .*s.csv:2"),
        (HEAD + "{0},p,r,pass\n{1},p,pass\n", "s.csv:3: 3 cells, expected 4"),
        (HEAD + '{0},p,r,pass\n{1},"p,r,pass\n', "s.csv:3: no CSV from here on"),
        (HEAD + '{0},"p"q,r,pass\n', "s.csv:2: no CSV from here on"),
        (HEAD + "{0},p,r,pass\n{1},caf\xe9,r,pass\n", "s.csv:3: not UTF-8"),
        ("item,prompt,response\n{0},p,r\n", "s.csv:1: there are no columns item and rating"),
        ("", "s.csv:1: there are no columns"),
        (HEAD, "s.csv:1: there is no row"),
    ],
)
def test_rows_that_can_not_be_read(text: str, says: str, folder: Path) -> None:
    names = list(json.loads((folder / "key.json").read_text())["items"])
    sheet = folder / "s.csv"
    sheet.write_bytes(text.format(*names).encode("latin-1"))
    with pytest.raises(LorachainsError, match=says.format(*names)):
        read_sheets([sheet], folder / "key.json")


def test_files_that_can_not_be_read(folder: Path) -> None:
    sheet, key = fill(folder, 1, lambda *_: "pass"), folder / "key.json"
    for sheets, says in (
        ([], "sheets is empty"),
        ([folder / "no.csv"], "no.csv can't be read"),
        ([sheet] * 2, "before"),
    ):
        with pytest.raises(LorachainsError, match=says):
            read_sheets(sheets, key)
    for text in ("", "[]", "{}", '{"items": {"x": {}}}', '{"items": [1]}', '{"items": {"x": 1}}'):
        key.write_text(text)
        with pytest.raises(LorachainsError, match=re.escape(f"{key} is damaged or no key")):
            read_sheets([sheet], key)
    key.unlink()
    with pytest.raises(LorachainsError, match=re.escape(f"{key} can't be read")):
        read_sheets([sheet], key)
