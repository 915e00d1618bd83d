import logging
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from lorachains.data.protocol import Sizes, draw
from lorachains.data.superglue import SuperGlue
from lorachains.errors import LorachainsError

from .stub import examples

_PAPER = Sizes(train=1000, val=500, test=1000)


def test_sizes_and_determinism() -> None:
    rows, held_out = examples(100), examples(50, name="held out")
    first, again, other = (draw("t", rows, held_out, Sizes(30, 10, 20), seed) for seed in (0, 0, 1))
    assert [len(first.train), len(first.val), len(first.test)] == [30, 10, 20]
    assert first == again
    assert {e.prompt for e in first.train} != {e.prompt for e in other.train}
    assert {e.prompt for e in first.test} != {e.prompt for e in other.test}
    assert set(first.train + first.val) <= set(rows)
    assert set(first.test) <= set(held_out)


def test_rows_with_one_prompt_stay_in_one_split() -> None:
    rows = examples(60)
    repeated = rows + [replace(row, source="again") for row in rows[:40]] + [replace(rows[0], source="once more")]
    for seed in range(20):
        splits = draw("t", repeated, examples(5, name="held out"), Sizes(30, 30, 5), seed)
        assert [len(splits.train), len(splits.val)] == [30, 30]
        assert not {e.prompt for e in splits.train} & {e.prompt for e in splits.val}


def test_rows_of_one_passage_stay_in_one_split() -> None:
    """And both splits draw from many passages."""
    rows = [replace(row, passage=f"passage {i % 30}") for i, row in enumerate(examples(300))]
    held_out = [replace(row, passage=f"passage {i}") for i, row in enumerate(examples(3, name="held out"))]
    for seed in range(20):
        splits = draw("t", rows, held_out, Sizes(100, 50, 3), seed)
        train, val, test = ({e.passage for e in split} for split in (splits.train, splits.val, splits.test))
        assert [len(splits.train), len(splits.val)] == [100, 50]
        assert len(train | val | test) == len(train) + len(val) + len(test)
        assert (len(train), len(val)) == (18, 9)  # two to one, of the 27 that aren't tested


def test_one_passage_cannot_be_shared() -> None:
    rows = [replace(row, passage="passage") for row in examples(9)]
    with pytest.raises(LorachainsError, match="task 't' has one passage to train and validate on: add rows"):
        draw("t", rows, examples(3, name="held out"), Sizes(4, 2, 3), seed=0)


def test_train_rows_with_a_test_prompt_are_left_out() -> None:
    rows = examples(40)
    splits = draw("t", rows, rows[:10], Sizes(20, 10, 10), seed=0)
    assert not {e.prompt for e in splits.train + splits.val} & {e.prompt for e in rows[:10]}


@pytest.mark.parametrize(
    ("available", "sizes", "expected"),
    [(250, _PAPER, (167, 83)), (400, _PAPER, (267, 133)), (1500, _PAPER, (1000, 500)), (2, Sizes(9, 1, 1), (1, 1))],
)
def test_small_sets_shrink_in_proportion(
    available: int, sizes: Sizes, expected: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lorachains"):
        splits = draw("t", examples(available), examples(3, name="held out"), sizes, seed=0)
    assert (len(splits.train), len(splits.val)) == expected
    assert (f"{available} rows, fewer than {sizes.train} + {sizes.val}" in caplog.text) == (available < 1500)


@pytest.mark.parametrize("name", ["rte", "cb", "wsc", "copa"])
def test_paper_protocol_on_official_files(data_root: Path, name: str) -> None:
    _, splits = SuperGlue(str(data_root)).load(name, _PAPER, seed=0)
    prompts = [{e.prompt for e in split} for split in (splits.train, splits.val, splits.test)]
    assert all(not a & b for a, b in combinations(prompts, 2))
    expected = {"rte": (1000, 500, 277), "cb": (167, 83, 56), "wsc": (369, 185, 104), "copa": (267, 133, 100)}
    assert (len(splits.train), len(splits.val), len(splits.test)) == expected[name]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("rte", (50, 500, 50)), ("rte", (100, 500, 100)), ("wic", (5000, 400, 638)), ("sst2", (5000, 500, 872))],
)
def test_low_and_large_data(data_root: Path, name: str, sizes: tuple[int, int, int]) -> None:
    """COLA App. A.2 and A.3. What the test set has is less than the 1000 asked for with 5000."""
    train, val, test = sizes
    _, splits = SuperGlue(str(data_root)).load(name, Sizes(train, val, test if test <= 100 else 1000), seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == sizes


@pytest.mark.parametrize("name", ["multirc", "squad", "drop"])
def test_official_passages_stay_in_one_split(data_root: Path, name: str) -> None:
    _, splits = SuperGlue(str(data_root)).load(name, _PAPER, seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1000, 500, 1000)
    passages = [{e.passage for e in split} for split in (splits.train, splits.val, splits.test)]
    assert all(not a & b for a, b in combinations(passages, 2))
    assert min(map(len, passages[:2])) > 100  # few rows of many passages


@pytest.mark.parametrize("size", [0, -1, 2.5, "10", True, None])
def test_sizes_must_be_positive_whole_numbers(size: object) -> None:
    with pytest.raises(LorachainsError, match=f"data.val_size is {size!r}: give a whole number above 0"):
        Sizes(10, size, 10)  # type: ignore[arg-type]
