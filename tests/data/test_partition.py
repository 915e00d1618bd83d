import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from lorachains.data.instructions import Record
from lorachains.data.partition import Parts, partition, same_text
from lorachains.errors import LorachainsError

_SHARES = [0.6, 0.2, 0.2]


def _records(task: str, n: int, texts: str = "") -> list[Record]:
    return [Record(task, "", f"{texts or task} {i}", ("a",), f"{task}:{i}") for i in range(n)]


def _places(parts: dict[str, Parts]) -> dict[str, int]:
    return {record.source: i for splits in parts.values() for i, split in enumerate(splits) for record in split}


def test_each_task_is_split_in_the_shares() -> None:
    sizes = {"a": 100, "b": 33, "c": 7}
    parts = partition([r for task, n in sizes.items() for r in _records(task, n)], _SHARES, 0)
    for task, n in sizes.items():
        assert [abs(len(split) - n * share) <= 1 for split, share in zip(parts[task], _SHARES, strict=True)] == [
            True
        ] * 3
        assert sum(map(len, parts[task])) == n


def test_splits_follow_the_seed_and_not_the_order_of_rows() -> None:
    rows = _records("a", 60)
    shuffled = random.Random(0).sample(rows, 60)
    assert partition(rows, _SHARES, 0) == partition(shuffled, _SHARES, 0)
    assert _places(partition(rows, _SHARES, 0)) != _places(partition(rows, _SHARES, 1))


def test_no_text_is_in_two_splits_of_any_tasks() -> None:
    """With texts that tasks share as inputs, as instructions, in other case and white space, and as whole requests."""
    rng, rows = random.Random(0), []
    for i in range(300):
        text, other = f"text {rng.randrange(80)}", f"text {rng.randrange(80)}"
        kinds = [("", text), (text, ""), (other, text.upper()), (f"{other}\n{text}", ""), ("", f" {text}  ")]
        rows.append(Record(f"t{rng.randrange(3)}", *kinds[rng.randrange(5)], ("a",), str(i)))
    parts = partition(rows, _SHARES, 0)
    texts = [
        {
            " ".join(text.split()).lower()
            for splits in parts.values()
            for r in splits[i]
            for text in (r.request, r.input)
        }
        - {""}
        for i in range(3)
    ]
    assert all(texts)
    assert not any(a & b for a, b in combinations(texts, 2))
    assert sum(len(split) for splits in parts.values() for split in splits) == 300


def test_groups_are_chains_of_shared_texts() -> None:
    """Against a search through the graph of records that have a text in common."""
    rng = random.Random(1)
    rows = [
        Record("t", rng.choice(["", f"i{rng.randrange(9)}"]), f"x{rng.randrange(40)}", ("a",), str(i))
        for i in range(60)
    ]
    texts = [{r.request, r.input} for r in rows]
    found, seen = set(), set[int]()
    for start in range(60):
        waiting, group = {start} - seen, set[int]()
        while waiting:
            group.add(here := waiting.pop())
            waiting |= {i for i in range(60) if texts[i] & texts[here]} - group
        seen |= group
        found |= {frozenset(str(i) for i in group)} if group else set()
    assert {frozenset(r.source for r in group) for group in same_text(rows).values()} == found


def test_rows_stay_where_they_are_when_tasks_come_and_go() -> None:
    shared = [*_records("b", 20), *_records("c", 40, "b")]  # half of c's texts are b's
    alone, among = partition(_records("a", 50), _SHARES, 3), partition([*shared, *_records("a", 50)], _SHARES, 3)
    assert alone["a"] == among["a"]


def test_rows_stay_where_they_are_without_their_instruction() -> None:
    """So that a prompt with a task's definition and one without are compared on the same rows."""
    rows = _records("a", 50)
    told = [replace(row, instruction="Do it.") for row in rows]
    assert _places(partition(rows, _SHARES, 0)) == _places(partition(told, _SHARES, 0))


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_rows_are_refused(n: int) -> None:
    with pytest.raises(LorachainsError, match=r"task 'a' has \d \+ \d \+ \d rows to train, validate and test on"):
        partition([*_records("b", 20), *_records("a", n)], _SHARES, 0)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.6, 0.3, 0.2], [1.0, 0.0, 0.0], 0.6, None, ["a", "b", "c"]])
def test_shares_must_make_one(shares: Any) -> None:
    with pytest.raises(LorachainsError, match=r"data.split is"):
        partition(_records("a", 9), shares, 0)
