"""Sheets are blind, balanced and drawn by a seed; nothing of the key is on them."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from lorachains.answers import Answer
from lorachains.errors import LorachainsError
from lorachains.human import Item, make_sheets, write_sheets


def answers(system: str, n: int = 10) -> list[Answer]:
    return [Answer("t", f"prompt {i}", f"of {system[0]} {i}", None, f"{system}.jsonl:{i + 1}") for i in range(n)]


SYSTEMS = {"secret-lora": answers("lora"), "secret-cola": answers("cola"), "secret-base": answers("base", 8)}


def test_every_annotator_rates_all_systems_on_the_same_prompts() -> None:
    items = make_sheets(SYSTEMS, annotators=3, prompts=5, seed=0)
    assert len({item.name for item in items}) == len(items) == 3 * 5 * 3
    prompts = {a: [i.answer.prompt for i in items if i.annotator == a] for a in (1, 2, 3)}
    assert len({frozenset(Counter(mine).items()) for mine in prompts.values()}) == 1
    assert len({tuple(mine) for mine in prompts.values()}) == 3  # in different orders
    for mine in prompts.values():
        assert set(Counter(mine).values()) == {3}
        assert all(len(set(mine[start : start + 3])) == 1 for start in range(0, 15, 3))  # side by side
    assert len({tuple(i.system for i in items[start : start + 3]) for start in range(0, 45, 3)}) > 2
    for item in items:
        assert item.answer in SYSTEMS[item.system]


def test_or_on_prompts_of_their_own() -> None:
    items = make_sheets(SYSTEMS, annotators=4, prompts=4, seed=0, same_prompts=False)
    prompts = {frozenset(i.answer.prompt for i in items if i.annotator == a) for a in range(1, 5)}
    assert len(prompts) > 1
    assert {len(mine) for mine in prompts} == {4}


def test_the_seed_decides() -> None:
    assert make_sheets(SYSTEMS, 2, 5, seed=1) == make_sheets(SYSTEMS, 2, 5, seed=1)
    assert make_sheets(SYSTEMS, 2, 5, seed=1) != make_sheets(SYSTEMS, 2, 5, seed=2)


def test_a_prompt_that_comes_again_is_drawn_once(caplog: pytest.LogCaptureFixture) -> None:
    twice = {"a": [*answers("a", 2), Answer("t", "prompt 0", "other", None, "a.jsonl:3")], "b": answers("b", 2)}
    items = make_sheets(twice, 1, 2, seed=0)
    assert {item.answer.prediction for item in items} == {"of a 0", "of a 1", "of b 0", "of b 1"}
    assert "a: rows whose prompt came before are left out: 1" in caplog.text


@pytest.mark.parametrize(
    ("systems", "annotators", "prompts", "says"),
    [
        (SYSTEMS, 0, 5, "annotators is 0"),
        (SYSTEMS, 1, "all", "prompts is 'all'"),
        ({}, 1, 5, "systems is empty"),
        (
            SYSTEMS,
            1,
            9,
            "prompts is 9, but only 8 prompts are answered by all of secret-lora, secret-cola, secret-base",
        ),
    ],
)
def test_sheets_that_can_not_be_made(
    systems: dict[str, list[Answer]], annotators: int, prompts: int, says: str
) -> None:
    with pytest.raises(LorachainsError, match=says):
        make_sheets(systems, annotators, prompts, seed=0)


def test_files(tmp_path: Path) -> None:
    items = make_sheets(SYSTEMS, annotators=2, prompts=3, seed=0)
    write_sheets(tmp_path, items)
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["annotator-1.csv", "annotator-1.html", "annotator-2.csv", "annotator-2.html"]
    for path in (tmp_path / "sheets").iterdir():
        text = path.read_text()
        assert "secret" not in text
        assert ".jsonl" not in text
    with (tmp_path / "sheets/annotator-2.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    mine = [item for item in items if item.annotator == 2]
    assert [(r["item"], r["prompt"], r["response"], r["rating"]) for r in rows] == [
        (item.name, item.answer.prompt, item.answer.prediction, "") for item in mine
    ]
    key = json.loads((tmp_path / "key.json").read_text())["items"]
    assert {name: owner["system"] for name, owner in key.items()} == {item.name: item.system for item in items}
    with pytest.raises(LorachainsError, match=r"key.json belongs to sheets that were made before"):
        write_sheets(tmp_path, items)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_a_spreadsheet_computes_nothing(text: str, tmp_path: Path) -> None:
    write_sheets(tmp_path, [Item("00000001", 1, "s", Answer("t", text, text, None, "f:1"))])
    with (tmp_path / "sheets/annotator-1.csv").open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["prompt"] == row["response"] == f"'{text}"
