"""A load says what its adapter's texts are."""

from lorachains.batch import pack
from lorachains.filling import filled
from lorachains.loads import Load, loads_of
from tests.batches import answered, texts_of

TEXTS = [answered([5, 6, 7, 8], 1), *texts_of((9, 2), (6, 3)), answered([5, 6, 7, 9], 1)]
"""The first and the last are read as one: they differ in the token that isn't read."""


def test_a_load_is_what_its_texts_are() -> None:
    assert loads_of(TEXTS, None, 1) == (Load(tokens=23, padded=4 * 9, lengths=(3, 8, 5), answers=7),)


def test_each_adapter_has_a_load() -> None:
    assert loads_of(TEXTS, [2, 0, 0, 2], 3) == (
        Load(tokens=15, padded=2 * 9, lengths=(8, 5), answers=5),
        Load(tokens=0, padded=0, lengths=(), answers=0),
        Load(tokens=8, padded=2 * 4, lengths=(3,), answers=2),
    )


def test_a_batch_has_them_also_when_it_is_filled() -> None:
    batch = pack(TEXTS, [2, 0, 0, 2], experts=3)
    assert batch.loads == filled(batch, 16).loads == loads_of(TEXTS, [2, 0, 0, 2], 3)
