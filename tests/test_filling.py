"""Batches of texts of many lengths have few sizes, and nothing but padding is added to them."""

from random import Random

import pytest
import torch

from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.filling import SEGMENTS, Sizes, filled
from lorachains.packing import packs
from lorachains.scoring import answer_losses
from tests.tiny import tiny_model


def batches(count: int, texts: int = 8, experts: int = 1, share: bool = False) -> list[TokenBatch]:
    """Of texts whose lengths differ by a factor of ten, an answer of a quarter of each, equal beginnings by twos."""
    random, made = Random(0), list[TokenBatch]()
    for _ in range(count):
        rows = list[Tokens]()
        for i in range(texts):
            length = random.randrange(12, 120)
            ids = [random.randrange(3, 60) for _ in range(length)]
            if share and i % 2:
                ids[:40] = rows[-1].input_ids[:40]
            rows.append(Tokens(ids, [IGNORED] * (len(ids) * 3 // 4) + ids[len(ids) * 3 // 4 :]))
        owners = sorted(random.randrange(experts) for _ in range(texts)) if experts > 1 else None
        made.append(pack(rows, owners, experts=experts, share=share))
    return made


def shapes(batch: TokenBatch) -> tuple[object, ...]:
    return tuple((name, *tensor.shape) for name, tensor in batch.tensors().items())


@pytest.mark.parametrize("share", [False, True])
def test_sizes_are_few_and_little_is_wasted(share: bool) -> None:
    given, sizes = batches(300, share=share), Sizes()
    largest = max(given, key=lambda batch: len(batch.input_ids))
    sizes.of(largest, largest=True)
    made = [filled(batch, 128, sizes.of(batch)) for batch in given]
    assert len({shapes(batch) for batch in made}) < 300 / 8
    own, all_ = (sum(len(batch.input_ids) for batch in some) for some in (given, made))
    assert all_ < 1.1 * own
    assert all(len(big.input_ids) <= 9 / 8 * len(small.input_ids) + 64 for small, big in zip(given, made, strict=True))


def test_batches_that_are_nearly_as_large_as_the_largest_have_its_size() -> None:
    sizes, given = Sizes(), batches(30, texts=1000)
    largest = max(given, key=lambda batch: len(batch.input_ids))
    size = sizes.of(largest, largest=True)
    assert size.tokens < len(largest.input_ids) * 33 / 32
    assert {sizes.of(batch).tokens for batch in given} == {size.tokens}


def test_sizes_are_known_once() -> None:
    """Also those which a small batch would not take again."""
    sizes, given = Sizes(), batches(60, texts=1)
    found = {sizes.of(batch) for batch in given}
    assert sorted(sizes._known, key=str) == sorted(found, key=str)


@pytest.mark.parametrize("experts", [1, 3])
def test_what_is_added_is_padding(experts: int) -> None:
    """And a part of a few segments, none longer than the longest text."""
    sizes = Sizes()
    for batch in batches(20, experts=experts):
        size = sizes.of(batch)
        made = filled(batch, 128, size)
        own = len(batch.input_ids)
        assert torch.equal(made.input_ids[:own], batch.input_ids)
        assert (len(made.input_ids), len(made.targets)) == (size.tokens, size.answers)
        assert (made.targets[len(batch.targets) :] == IGNORED).all()
        assert made.lengths[: len(batch.lengths)] == batch.lengths
        assert max(made.lengths) <= made.longest == 128
        assert sum(made.lengths) == size.tokens == made.bounds[-1]
        assert len(made.lengths) % SEGMENTS == 0
        if made.adapters is not None and made.ends is not None:
            assert len(made.adapters) * 16 == size.tokens == made.ends[-1]


@torch.no_grad()
def test_losses_are_the_same() -> None:
    model, sizes = tiny_model("llama").double().eval(), Sizes()
    assert packs(model)
    for batch in batches(3):
        own, losses = answer_losses(model, batch), answer_losses(model, filled(batch, 128, sizes.of(batch)))
        torch.testing.assert_close(losses[: len(own)], own, rtol=1e-9, atol=1e-9)
        assert not losses[len(own) :].any()
