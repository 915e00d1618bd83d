import os
import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest

from lorachains.data.protocol import Sizes, Splits
from lorachains.data.reasoning import _CANDIDATES, ReasoningGym, datamodule
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer

from .stub import score

_SIZES = Sizes(train=20, val=10, test=15)


def _splits(name: str, seed: int = 0, sizes: Sizes = _SIZES) -> Splits:
    return ReasoningGym(None, {}).load(name, sizes, seed)[1]


def test_splits_are_disjoint_and_follow_the_seed() -> None:
    first, again, other = _splits("leg_counting"), _splits("leg_counting"), _splits("leg_counting", seed=1)
    assert first == again
    prompts = [
        [e.prompt for e in split] for splits in (first, other) for split in (splits.train, splits.val, splits.test)
    ]
    assert [len(split) for split in prompts] == [20, 10, 15] * 2
    assert all(len(set(split)) == len(split) for split in prompts)
    assert all(not set(a) & set(b) for a, b in combinations(prompts, 2))


def test_a_small_space_of_questions_is_shared_without_repeats() -> None:
    splits = _splits("coin_flip", sizes=Sizes(40, 20, 20))  # most of its draws repeat
    prompts = [e.prompt for e in splits.train + splits.val + splits.test]
    assert len(prompts) == len(set(prompts)) == 80


def test_free_answers_are_scored_by_reasoning_gym() -> None:
    task, splits = ReasoningGym(None, {}).load("leg_counting", _SIZES, seed=0)
    example = splits.test[0]
    assert task.metric == "score"
    assert example.candidates == ()
    assert example.prompt.endswith("\nAnswer:")
    assert score(task, example.answer, example) == 1
    assert score(task, "no number", example) == 0


def test_a_prediction_that_the_scorer_cannot_parse_is_wrong() -> None:
    task, splits = ReasoningGym(None, {}).load("prime_factorization", _SIZES, seed=0)
    assert score(task, "two times two", splits.test[0]) == 0


@pytest.mark.parametrize("name", _CANDIDATES)
def test_known_candidates_cover_all_answers(name: str) -> None:
    task, splits = ReasoningGym(None, {}).load(name, Sizes(40, 10, 10), seed=0)
    assert {e.answer for e in splits.train} == {f" {word}" for word in _CANDIDATES[name]}
    assert task.metric == "accuracy"
    assert all(score(task, candidate, e) == (candidate == e.answer) for e in splits.test for candidate in e.candidates)


def test_candidates_and_options_from_the_config() -> None:
    source = ReasoningGym([1, 2, 3], {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}})
    with pytest.raises(
        LorachainsError, match=r"reasoning_gym:chain_sum#.*not one of data.candidates=\['1', '2', '3'\]"
    ):
        source.load("chain_sum", _SIZES, seed=0)
    source.candidates = tuple(str(answer) for answer in range(-9, 19))
    _, splits = source.load("chain_sum", _SIZES, seed=0)
    assert all(len(e.candidates) == 28 and e.answer in e.candidates for e in splits.train)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("leg_count", "data.task is 'leg_count': known reasoning_gym tasks are ab, acre, .*leg_counting"),
        ("composite", "data.task is 'composite': known"),
        ("ransom_note", "data.task is 'ransom_note': reasoning_gym draws it differently in each process"),
        ("graph_color", r"reasoning_gym:graph_color#\d+\+0: field 'answer' is null, expected text"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(name: str, fault: str) -> None:
    with pytest.raises(LorachainsError, match=fault):
        _splits(name)


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(LorachainsError, match=r"'tower_of_hanoi' gave \d+ new questions for data.train_size=900"):
        _splits("tower_of_hanoi", sizes=Sizes(900, 1, 1))


@pytest.mark.parametrize("options", [{"no_such": 1}, {"min_terms": 0}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(LorachainsError, match=r"data.options.chain_sum is .* reasoning_gym says") as error:
        ReasoningGym(None, {"chain_sum": options}).load("chain_sum", _SIZES, seed=0)
    assert "\n" not in str(error.value)


def test_options_of_an_absent_task_are_refused() -> None:
    sizes = {"train_size": 1, "val_size": 1, "test_size": 1, "batch_size": 1, "eval_batch_size": None}
    settings: dict[str, Any] = {
        **sizes,
        "seed": 0,
        "order_seed": 0,
        "max_length": 99,
        "candidates": None,
        "tasks": None,
    }
    with pytest.raises(LorachainsError, match=r"data.options has chain_sum, not among the tasks leg_counting"):
        datamodule(byte_tokenizer(), task="leg_counting", options={"chain_sum": {}}, **settings)


def test_rows_are_the_same_in_every_process() -> None:
    names = ["leg_counting", *_CANDIDATES]
    script = (
        "import hashlib, reasoning_gym;"
        f"sets = [reasoning_gym.create_dataset(name, seed=1, size=100) for name in {names}];"
        "rows = repr([(row['question'], row['answer']) for rows in sets for row in rows]);"
        "print(hashlib.sha256(rows.encode()).hexdigest())"
    )
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (command.communicate()[0] for command in commands)
    assert len(first.strip()) == 64
    assert first == second
