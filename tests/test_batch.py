"""A batch says where its answers are; its labels and its positions are two forms of one thing."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from lorachains.batch import IGNORED, TokenBatch

_ = IGNORED
LABELS = torch.tensor([[_, _, 5, 6], [_, 7, 8, _], [_, _, _, _], [_, _, _, 9]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def batch(labels: Tensor = LABELS) -> TokenBatch:
    tokens = torch.where(labels == IGNORED, 1, labels)
    return TokenBatch.of_labels(tokens, MASK, labels, torch.arange(len(labels)))


def equal(ours: TokenBatch, theirs: TokenBatch) -> bool:
    pairs = [(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(TokenBatch) if f.name != "tokens"]
    return ours.tokens == theirs.tokens and all(torch.equal(a, b) for a, b in pairs)


def test_positions_are_those_before_the_answer_tokens() -> None:
    ours = batch()
    assert ours.positions.tolist() == [1, 2, 4, 5, 14]
    assert ours.targets.tolist() == [5, 6, 7, 8, 9]
    assert ours.answer_row.tolist() == [0, 0, 1, 1, 3]
    assert ours.tokens == 13


def test_labels_come_back() -> None:
    assert torch.equal(batch().labels, LABELS)


def test_a_first_token_is_no_answer_since_nothing_predicts_it() -> None:
    assert batch(torch.tensor([[5, _, _, 6]] * 4)).targets.tolist() == [6] * 4


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_the_first_rows_are_a_batch_of_their_own(rows: int) -> None:
    labels = LABELS[:rows]
    tokens = torch.where(labels == IGNORED, 1, labels)
    assert equal(batch().first(rows), TokenBatch.of_labels(tokens, MASK[:rows], labels, torch.arange(len(labels))))


def test_moving_keeps_all() -> None:
    assert equal(batch().to("cpu"), batch())
    assert batch().to("meta").labels.device.type == "meta"
