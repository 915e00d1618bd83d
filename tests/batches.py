"""What the tests share about batches: the texts of a batch, taken apart again."""

from collections.abc import Sequence

import torch

from lorachains.batch import IGNORED, TokenBatch, Tokens
from tests.tiny import VOCAB_SIZE


def texts_of(*sizes: tuple[int, int], seed: int = 0) -> list[Tokens]:
    """Random texts of so many tokens, of which the last so many are the answer."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, VOCAB_SIZE, (size,), generator=generator).tolist() for size, _ in sizes]
    return [answered(row, answer) for row, (_, answer) in zip(rows, sizes, strict=True)]


def answered(ids: Sequence[int], answer: int) -> Tokens:
    """A text whose last tokens are the answer."""
    start = len(ids) - answer
    return Tokens(list(ids), [IGNORED] * start + list(ids[start:]))


def rebuilt(batch: TokenBatch) -> list[Tokens]:
    """Each of the texts that a batch was packed from, in order."""
    bounds, texts = batch.bounds.tolist(), []
    for i in range(batch.candidates):
        mine = (batch.candidate == i) & (batch.targets != IGNORED)
        places, answer = batch.positions[mine].tolist(), batch.targets[mine].tolist()
        assert places == list(range(places[0], places[0] + len(places)))
        start = max(bound for bound in bounds if bound <= places[0])
        ids = [*batch.input_ids[start : places[-1] + 1].tolist(), answer[-1]]
        texts.append(Tokens(ids, [IGNORED] * (len(ids) - len(answer)) + answer))
    return texts
