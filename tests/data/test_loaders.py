"""Several runs' batches are each run's own, side by side."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import pytest
import torch

from lorachains.batch import TokenBatch, Tokens
from lorachains.data import streams
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.streams import ALL, Share, TrainLoader
from lorachains.data.tokens import EvalBatch, Serving
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer
from tests.batches import rebuilt

from .stub import stub_module


def module(**changes: Any) -> TaskDataModule:
    made = stub_module(byte_tokenizer(), **changes)
    made.setup()
    return made


def side_by_side(runs: Sequence[TaskDataModule], experts: int = 1, share: Share | None = None) -> RunsDataModule:
    data = RunsDataModule(runs)
    data.serve(Serving(len(runs), experts), False, share or ALL)
    return data


def three() -> list[TaskDataModule]:
    """Two runs that share their rows, in two orders, and one with rows of its own."""
    first = module(order_seed=3)
    return [first, first.in_order(4), module(tasks=["other"], order_seed=5)]


def by_adapter(batch: TokenBatch) -> dict[int, list[Tokens]]:
    owners = [int(batch.served[batch.candidate == i][0]) for i in range(batch.candidates)]
    texts = list(zip(owners, rebuilt(batch), strict=True))
    return {adapter: [text for owner, text in texts if owner == adapter] for adapter in sorted(set(owners))}


def test_a_training_batch_is_each_runs_next_one() -> None:
    """Over two epochs."""
    runs = three()
    together, alone = side_by_side(runs).train_dataloader(), [run.train_dataloader() for run in runs]
    for _ in range(2):
        batches = list(together)
        assert len(batches) == len(together) == 7
        assert [by_adapter(batch) for batch in batches] == [
            dict(enumerate(map(rebuilt, parts))) for parts in zip(*alone, strict=True)
        ]


def test_each_run_has_an_adapter_for_each_task() -> None:
    first = module(tasks=["one", "two"], order_seed=3)
    runs = [first, first.in_order(4)]
    texts: Counter[int] = Counter()
    for batch in side_by_side(runs, experts=2).train_dataloader():
        for adapter, found in by_adapter(batch).items():
            named = byte_tokenizer().batch_decode([text.input_ids for text in found])
            assert all(text.startswith(("one", "two")[adapter % 2]) for text in named)
            texts[adapter] += len(found)
    assert texts == {0: 27, 1: 27, 2: 27, 3: 27}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_answers_every_row_of_every_run_once(split: str) -> None:
    """Runs with the same rows go through them in the same batches."""
    runs = three()
    data = side_by_side(runs)
    batches: list[EvalBatch] = list(data.val_dataloader() if split == "val" else data.test_dataloader())
    seen = [(run, row.example.source) for batch in batches for run, row in zip(batch.runs, batch.rows, strict=True)]
    assert sorted(seen) == sorted(
        (number, row.example.source) for number, run in enumerate(runs) for row in run.rows(split)
    )
    assert {frozenset(batch.runs) for batch in batches} == {frozenset({0, 1}), frozenset({2})}
    for batch in batches:
        texts = iter(rebuilt(batch.scored))
        for row in batch.rows:
            assert [next(texts) for _ in row.choices] == row.choices


def test_evaluation_batches_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is room: then they are made anew each time, and are the same."""
    rows = sum(len(run.rows("val")) for run in three())
    for room, kept in ((streams.KEPT, True), (0, False)):
        monkeypatch.setattr(streams, "KEPT", room)
        loader = side_by_side(three()).val_dataloader()
        first, second = list(loader), list(loader)
        assert sum(len(batch.rows) for batch in first) == rows
        for one, other in zip(first, second, strict=True):
            assert (one is other) is kept
            assert one.rows == other.rows
            assert torch.equal(one.scored.input_ids, other.scored.input_ids)


def test_runs_go_on_where_they_were() -> None:
    """In the middle of the second epoch."""
    loader = side_by_side(three()).train_dataloader()
    whole = [rebuilt(batch) for _ in range(2) for batch in loader]
    stopped, again = side_by_side(three()).train_dataloader(), side_by_side(three()).train_dataloader()
    list(stopped)
    list(islice(stopped, 3))
    again.load_state_dict(stopped.state_dict())
    assert [rebuilt(batch) for batch in again] == whole[10:]


def uneven() -> list[TaskDataModule]:
    """Epochs of 7, 3 and 1 batches."""
    return [module(), module(train_size=11, order_seed=4), module(tasks=["other"], train_size=3)]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_runs_of_different_lengths_end_their_epochs_together(accumulate: int) -> None:
    """Each goes through its own batches, in its own order, over two epochs."""
    data = RunsDataModule(uneven())
    data.serve(Serving(3), by_length=False, accumulate=accumulate)
    together, alone = data.train_dataloader(), [run.train_dataloader() for run in uneven()]
    for _ in range(2):
        found = [by_adapter(batch) for batch in together]
        for run, loader in enumerate(alone):
            assert [batch[run] for batch in found if run in batch] == list(map(rebuilt, loader))
            assert run in found[-1]


def test_presence_is_what_the_batches_have() -> None:
    """With three batches an optimizer step; an epoch's last has one. Runs of two tasks mix them at random."""
    runs = [module(tasks=["one", "two"], train_size=8), module(tasks=["one", "two"], train_size=5)]
    data = RunsDataModule(runs)
    data.serve(Serving(2, 2), by_length=False, accumulate=3)
    loader, seen = data.train_dataloader(), []
    for _ in range(3):
        owners = [set(batch.served.tolist()) for batch in loader]
        seen += [set.union(*owners[:3]), owners[3]]
    assert [set(step.nonzero().flatten().tolist()) for step in data.presence(5, 4)] == seen[:5]


@pytest.mark.parametrize("given", [2, 7, 9])
def test_runs_of_different_lengths_go_on_where_they_were(given: int) -> None:
    def loader() -> TrainLoader:
        return side_by_side(uneven()).train_dataloader()

    def read(loader: TrainLoader, batches: int) -> list[dict[int, list[Tokens]]]:
        endless = chain.from_iterable(iter(loader) for _ in range(9))
        return [by_adapter(batch) for batch in islice(endless, batches)]

    whole, stopped, again = read(loader(), 21), loader(), loader()
    read(stopped, given)
    again.load_state_dict(stopped.state_dict())
    assert read(again, 21 - given) == whole[given:]


def test_tasks_may_have_batches_of_their_own() -> None:
    """Each task's as if it were alone: of its own size and in its own order."""
    both = module(tasks=["one", "two"], order_seed=3)
    parted = both.with_rows({}, both.tasks, apart=[4, 9])
    parted.serve(Serving(1, 2), by_length=False)
    found = [by_adapter(batch) for batch in parted.train_dataloader()]
    for task, (name, size) in enumerate([("one", 4), ("two", 9)]):
        alone = module(tasks=[name], order_seed=3, batch_size=size).train_dataloader()
        assert [batch[task] for batch in found if task in batch] == list(map(rebuilt, alone))


@pytest.mark.parametrize("epochs", [1, 3])
def test_no_batch_is_larger_than_the_largest(epochs: int) -> None:
    def runs() -> RunsDataModule:
        first = module(tasks=["stub", "free"], eval_batch_size=8)
        return side_by_side([first, first.in_order(1)])

    train, evaluate = runs().largest(epochs)
    loader = runs().train_dataloader()
    assert train.tokens == max(batch.tokens for _ in range(epochs) for batch in loader)
    scored = [batch.scored.tokens for batch in chain(runs().val_dataloader(), runs().test_dataloader())]
    assert evaluate.scored.tokens == max(scored)


@pytest.mark.parametrize("of", [2, 3])
def test_processes_share_a_batch(of: int) -> None:
    """Together they have each row once; a share's answer tokens are the part that it says."""
    runs = three()
    whole = side_by_side(runs).train_dataloader()
    parts = [side_by_side(runs, share=Share(rank, of)).train_dataloader() for rank in range(of)]
    for batch, *shares in zip(whole, *parts, strict=True):
        expected, found = by_adapter(batch), [by_adapter(share) for share in shares]
        answers = batch.served.bincount(minlength=3)
        for share in shares:
            assert share.loads == batch.loads
            assert share.shares is not None
            assert torch.allclose(share.shares * answers, share.served.bincount(minlength=3).double())
        for adapter, texts in expected.items():
            together = [text.input_ids for part in found for text in part.get(adapter, [])]
            assert sorted(together) == sorted(text.input_ids for text in texts)


def test_a_batch_with_fewer_rows_than_processes_is_refused() -> None:
    with pytest.raises(LorachainsError, match=r"data.batch_size is 4, shared by 5 devices"):
        side_by_side(three(), share=Share(0, 5)).train_dataloader()


def test_the_data_of_one_run_is_that_of_a_group_of_one() -> None:
    """It can be trained on as it is, also where the largest batch is tried first."""
    alone = stub_module(byte_tokenizer())
    alone.setup()
    train, evaluation = alone.largest(1)
    theirs, their_evaluation = RunsDataModule([alone]).largest(1)
    assert torch.equal(train.input_ids, theirs.input_ids)
    assert torch.equal(evaluation.scored.input_ids, their_evaluation.scored.input_ids)
