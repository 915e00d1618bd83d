import random
from itertools import chain, pairwise

import pytest

from lorachains.data.batching import EpochBatches, epoch_batches, evaluation_batches
from lorachains.data.tokens import encode_eval
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer

from .stub import examples

_LENGTHS = random.Random(0).choices(range(10, 500), k=1003)


@pytest.mark.parametrize("by_length", [False, True])
def test_every_row_comes_once_an_epoch_and_the_short_batch_is_kept(by_length: bool) -> None:
    batches = epoch_batches(_LENGTHS, 8, seed=0, epoch=0, by_length=by_length)
    assert sorted(chain.from_iterable(batches)) == list(range(1003))
    assert sorted(map(len, batches)) == [3] + [8] * 125


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [epoch_batches(_LENGTHS, 8, seed, epoch) for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def _padding(batches: list[list[int]]) -> float:
    """By the tokens of all rows."""
    padded = sum(max(_LENGTHS[i] for i in batch) * len(batch) for batch in batches)
    return padded / sum(_LENGTHS) - 1


def test_batches_are_random() -> None:
    assert _padding(epoch_batches(_LENGTHS, 8, seed=0, epoch=0)) > 0.7  # drawn blindly


def test_batches_are_bucketed_by_length_but_in_random_order() -> None:
    batches = epoch_batches(_LENGTHS, 8, seed=0, epoch=0, by_length=True)
    assert _padding(batches) < 0.05
    longest = [max(_LENGTHS[i] for i in batch) for batch in batches]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 0.35 * len(longest) < rises < 0.65 * len(longest)


@pytest.mark.parametrize("by_length", [False, True])
def test_evaluation_batches_keep_examples_whole_within_the_limit(by_length: bool) -> None:
    """Candidates in order or the longest first; free answers, whose prompts are padded, always the longest first."""
    rows = encode_eval(byte_tokenizer(), examples(20) + examples(9, name="free", candidates=()), 0, 99)
    batches = evaluation_batches(rows, 7, by_length)
    assert sorted(chain.from_iterable(batches)) == list(range(29))
    assert [len(batch) for batch in batches] == [3] * 6 + [2] + [7, 2]
    for batch in batches:
        assert len({row.prompt is None for row in (rows[i] for i in batch)}) == 1
    chosen, free = list(chain.from_iterable(batches[:7])), list(chain.from_iterable(batches[7:]))
    for order in (chosen, free) if by_length else (free,):
        lengths = [rows[i].length for i in order]
        assert lengths == sorted(lengths, reverse=True)
    assert by_length or chosen == list(range(20))


def test_an_example_with_more_candidates_than_the_limit_has_its_own_batch() -> None:
    rows = encode_eval(byte_tokenizer(), examples(3), 0, 99)
    assert [len(batch) for batch in evaluation_batches(rows, 1)] == [1, 1, 1]


def test_each_iteration_is_the_next_epoch() -> None:
    batches = EpochBatches(_LENGTHS, 8, seed=3)
    batches.set_epoch(5)
    assert [list(batches), list(batches)] == [epoch_batches(_LENGTHS, 8, 3, epoch) for epoch in (5, 6)]


@pytest.mark.parametrize("given", [1, 5, 125, 126])
def test_loaded_state_goes_on_behind_the_last_batch(given: int) -> None:
    whole = EpochBatches(_LENGTHS, 8, seed=3)
    steps = iter(whole)
    for _ in range(given):
        next(steps)
    resumed = EpochBatches(_LENGTHS, 8, seed=3)
    resumed.load_state_dict(whole.state_dict())
    resumed.set_epoch(7)  # which Lightning gets wrong after loading
    rest = list(resumed)
    assert rest == (list(steps) or list(whole))
    assert resumed.state_dict() == whole.state_dict()
    assert list(resumed) == list(whole)


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (EpochBatches(_LENGTHS, 4, seed=3), "data.batch_size=4, this run has 8"),
        (EpochBatches(_LENGTHS, 8, seed=4), "data.order_seed=4, this run has 3"),
        (EpochBatches(_LENGTHS[1:], 8, seed=3), "training rows=1002, this run has 1003"),
    ],
)
def test_state_of_another_order_is_refused(other: EpochBatches, fault: str) -> None:
    with pytest.raises(LorachainsError, match=fault):
        EpochBatches(_LENGTHS, 8, seed=3).load_state_dict(other.state_dict())
