"""What the tests share about batches: the texts of a batch, taken apart again."""

from bisect import bisect_right
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
    pieces = torch.arange(len(batch.input_ids)).split(batch.lengths) if batch.keys is None else None
    attended = pieces or batch.keys[: sum(batch.key_lengths)].split(batch.key_lengths)  # type: ignore[index]
    for i in range(batch.candidates):
        mine = (batch.candidate == i) & (batch.targets != IGNORED)
        places, answer = batch.positions[mine].tolist(), batch.targets[mine].tolist()
        segment = bisect_right(bounds, places[-1]) - 1
        read = attended[segment].tolist()
        read = read[: read.index(places[-1]) + 1]
        assert places == read[-len(places) :]
        ids = [*batch.input_ids[read].tolist(), answer[-1]]
        texts.append(Tokens(ids, [IGNORED] * (len(ids) - len(answer)) + answer))
    return texts
