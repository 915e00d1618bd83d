"""A batch holds the texts that it was packed from, each adapter's in blocks of its own, whatever its layout."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains.batch import BLOCK, IGNORED, TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.filling import filled
from lorachains.packing import hard_route
from lorachains.routing import HardRoute
from lorachains.scoring import answer_losses, logits_after, mean_per_group
from tests.adapters import config, randomise
from tests.batches import answered, rebuilt, texts_of
from tests.tiny import tiny_model

TEXTS = texts_of((23, 3), (5, 4), (70, 1), (12, 11), (33, 6), (17, 1))
OWNERS: dict[str, list[int] | None] = {"one adapter": None, "three": [2, 0, 2, 0, 1, 2], "a gap": [2, 0, 2, 0, 2, 0]}
owned = pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)


def packed(owners: list[int] | None, texts: Sequence[Tokens] = TEXTS) -> TokenBatch:
    return pack(texts, owners, pad=7, experts=1 if owners is None else 3)


def starts(batch: TokenBatch) -> list[int]:
    return batch.bounds.tolist()[:-1]


@owned
def test_the_texts_come_back(owners: list[int] | None) -> None:
    assert rebuilt(packed(owners)) == TEXTS


@owned
def test_segments_cover_the_stream_and_positions_count_in_each(owners: list[int] | None) -> None:
    batch = packed(owners)
    assert batch.bounds.diff().tolist() == list(batch.lengths)
    assert batch.bounds[0] == 0
    assert batch.bounds[-1] == sum(batch.lengths) == len(batch.input_ids)
    assert batch.longest == max(batch.lengths)
    own = zip(batch.lengths, batch.padding, strict=True)
    assert batch.position_ids.tolist() == [n for length, more in own for n in [*range(length - more), *[0] * more]]


@owned
def test_what_is_no_text_is_padding(owners: list[int] | None) -> None:
    batch = packed(owners)
    pieces = batch.input_ids.split(batch.lengths)
    texts = [pieces[i][: batch.lengths[i] - batch.padding[i]].tolist() for i in batch.texts]
    assert sorted(texts) == sorted(text.input_ids[:-1] for text in TEXTS)
    ends = [piece[len(piece) - more :] for piece, more in zip(pieces, batch.padding, strict=True)]
    blocks = [piece for i, piece in enumerate(pieces) if i not in batch.texts]
    assert all(piece.eq(7).all() for piece in (*ends, *blocks))
    assert any(batch.padding) == (owners is not None)
    assert all(len(piece) == BLOCK for piece in blocks)
    assert len(blocks) == (0 if owners is None else max(owners) + 1 - len(set(owners)))


@pytest.mark.parametrize("owners", [OWNERS["three"], OWNERS["a gap"]], ids=["three", "a gap"])
def test_each_adapter_has_blocks_of_its_own(owners: list[int]) -> None:
    """In order, at least one; each answer token is served by the adapter of its text, whose block it is in."""
    batch = packed(owners)
    assert batch.adapters is not None
    assert batch.ends is not None
    blocks = batch.adapters.tolist()
    assert len(batch.input_ids) == BLOCK * len(blocks)
    assert blocks == sorted(blocks)
    assert set(blocks) == {0, 1, 2}
    assert [BLOCK * sum(block <= adapter for block in blocks) for adapter in range(3)] == batch.ends.tolist()
    assert batch.served.tolist() == [owners[i] for i in batch.candidate]
    assert batch.served.tolist() == [blocks[place // BLOCK] for place in batch.positions]


def test_one_adapter_has_neither_blocks_nor_padding() -> None:
    batch = packed(None)
    assert batch.adapters is batch.ends is None
    assert not batch.served.any()
    assert len(batch.input_ids) == sum(len(text.input_ids) - 1 for text in TEXTS)


@owned
def test_tokens_are_counted_by_adapter_without_padding(owners: list[int] | None) -> None:
    batch, experts = packed(owners), 1 if owners is None else 3
    by_owner = [
        sum(len(text.input_ids) for text, owner in zip(TEXTS, owners or [0] * 6, strict=True) if owner == expert)
        for expert in range(experts)
    ]
    assert batch.counts == tuple(by_owner)
    assert batch.tokens == sum(by_owner)
    assert batch.candidates == 6


def test_candidates_that_differ_in_their_last_token_share_a_text() -> None:
    """Not those that differ before it, nor those of different adapters."""
    prompt = [5, 6, 7]
    same = [answered([*prompt, last], 1) for last in (8, 9, 10)]
    longer = [answered([*prompt, 8, last], 2) for last in (11, 12)]
    other = answered([*prompt[:-1], 3, 8], 1)
    texts = [same[0], longer[0], other, same[1], longer[1], same[2]]
    batch = pack(texts)
    assert len(batch.texts) == 3
    assert len(batch.input_ids) == 3 + 4 + 3
    assert rebuilt(batch) == texts
    apart = pack(same, [0, 1, 0], experts=2)
    assert len(apart.texts) == 2
    assert rebuilt(apart) == same


def test_a_first_token_is_no_answer_since_nothing_predicts_it() -> None:
    batch = pack([Tokens([5, 6, 7], [5, IGNORED, 7]), Tokens([5, 6, 7], [5, 6, 7])])
    assert [text.labels for text in rebuilt(batch)] == [[IGNORED, IGNORED, 7], [IGNORED, 6, 7]]


@owned
def test_moving_keeps_all(owners: list[int] | None) -> None:
    batch = packed(owners)
    again, there = batch.to("cpu"), batch.to("meta")
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in batch.tensors().items())
    assert {tensor.device.type for tensor in there.tensors().values()} == {"meta"}
    assert there.tensors().keys() == batch.tensors().keys()
    assert (there.lengths, there.counts) == (batch.lengths, batch.counts)


# -- the other layouts -------------------------------------------------------------------------------------------------


def chain_of(owners: list[int] | None) -> Chain:
    chain = Chain(tiny_model("llama", torch.float64), config("llama"), seeds=[0] if owners is None else [0, 1, 2])
    randomise(chain)
    return chain


def losses_and_gradient(chain: Chain, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of each answer token, of each adapter, and of their sum."""
    chain.route = hard_route(chain.model, batch)
    losses = answer_losses(chain.model, batch)
    means = mean_per_group(losses, batch.served, chain.experts, batch.targets)
    return losses.detach(), means.detach(), chain.differentiate(means.sum())


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-12 * theirs.norm())


@owned
@pytest.mark.parametrize("longest", [69, 500])
def test_filling_up_changes_neither_losses_nor_gradients(owners: list[int] | None, longest: int) -> None:
    chain, batch = chain_of(owners), packed(owners)
    full = filled(batch, longest)
    losses, means, gradient = losses_and_gradient(chain, full)
    expected_losses, expected_means, expected_gradient = losses_and_gradient(chain, batch)
    n = len(batch.targets)
    assert close(losses[:n], expected_losses)
    assert not losses[n:].any()
    assert close(means, expected_means)
    assert close(gradient, expected_gradient)
    assert full.longest >= max(longest, *full.lengths)
    assert (full.counts, full.texts, full.candidates) == (batch.counts, batch.texts, batch.candidates)
    assert rebuilt(full) == TEXTS


@pytest.mark.parametrize("adapters", [1, 3])
def test_filled_batches_have_few_sizes_and_little_padding(adapters: int) -> None:
    """A hundred batches of other sizes; what is filled up is of the adapter that comes last."""
    generator = torch.Generator().manual_seed(0)
    shapes: set[tuple[tuple[int, ...], ...]] = set()
    filled_shapes: set[tuple[tuple[int, ...], ...]] = set()
    for number in range(100):
        lengths = torch.randint(2, 120, (8,), generator=generator).tolist()
        texts = texts_of(*((length, 1 + length // 4) for length in lengths), seed=number)
        batch = pack(texts, None if adapters == 1 else [i % adapters for i in range(8)])
        full = filled(batch, 120 + BLOCK)
        for kept, given in ((shapes, batch), (filled_shapes, full)):
            kept.add(tuple(tuple(tensor.shape) for tensor in given.tensors().values()))
        assert len(full.input_ids) - len(batch.input_ids) <= max(64, len(batch.input_ids) / 16)
        assert len(full.input_ids) == full.bounds[-1] == sum(full.lengths)
        if full.adapters is not None and full.ends is not None:
            assert len(full.input_ids) == BLOCK * len(full.adapters) == full.ends[-1]
            assert full.adapters.tolist() == sorted(full.adapters.tolist())
    assert len(filled_shapes) < len(shapes) / 2


@owned
def test_padded_rows_are_the_texts(owners: list[int] | None) -> None:
    batch = packed(owners)
    rows = batch.padded()
    pieces = batch.input_ids.split(batch.lengths)
    for ids, mask, i in zip(rows.input_ids, rows.attention_mask, batch.texts, strict=True):
        length = batch.lengths[i] - batch.padding[i]
        assert torch.equal(ids[:length], pieces[i][:length])
        assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
        assert not ids[length:].any()
    assert torch.equal(rows.input_ids.flatten()[rows.positions], batch.input_ids[batch.positions])
    assert (rows.adapters is None) == (owners is None)
    if rows.adapters is not None:
        row = rows.positions // rows.input_ids.shape[1]
        assert torch.equal(rows.adapters[row], batch.served)


@owned
def test_padded_rows_have_the_losses_of_the_stream(owners: list[int] | None) -> None:
    chain, batch = chain_of(owners), packed(owners)
    losses, _, _ = losses_and_gradient(chain, batch)
    rows = batch.padded()
    chain.route = None if rows.adapters is None else HardRoute(rows.adapters)
    with logits_after(chain.model, rows.positions):
        logits = chain.model(rows.input_ids, attention_mask=rows.attention_mask).logits[0]
    assert close(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none"), losses)


def test_filled_rows_can_be_padded_too() -> None:
    batch = packed(OWNERS["three"])
    rows, again = batch.padded(), filled(copy.deepcopy(batch), 99).padded()
    assert torch.equal(rows.input_ids, again.input_ids)
    assert torch.equal(rows.positions, again.positions[: len(rows.positions)])


def branching(seed: int = 0) -> list[Tokens]:
    """Prompts with candidates of several tokens, one of which is the beginning of another; the last stands alone."""
    texts = []
    for number, size in enumerate((20, 41, 33)):
        prompt = texts_of((size, 1), seed=seed + number)[0].input_ids
        texts += [answered([*prompt, *ids], len(ids)) for ids in ([5, 6, 7], [5, 6], [5, 6, 8, 9], [4])]
    return [*texts, *texts_of((19, 2), seed=seed + 9)]


WINDOW: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
SHARED_BY = {"one adapter": None, "three": [0] * 4 + [2] * 4 + [1] * 5}
shared_by = pytest.mark.parametrize("owners", SHARED_BY.values(), ids=SHARED_BY)


@shared_by
def test_texts_that_share_their_beginnings_come_back(owners: list[int] | None) -> None:
    texts = branching()
    shared = pack(texts, owners, 7, None if owners is None else 3, share=True)
    apart = pack(texts, owners, 7, None if owners is None else 3)
    assert rebuilt(shared) == rebuilt(filled(shared, 64)) == texts
    assert shared.loads == apart.loads
    assert len(shared.input_ids) < 0.6 * len(apart.input_ids)
    assert shared.key_bounds is not None
    assert shared.key_bounds.diff().tolist() == list(shared.key_lengths)
    assert shared.longest == max(shared.key_lengths)


def test_texts_that_begin_differently_share_nothing() -> None:
    shared = pack(TEXTS, share=True)
    assert shared.keys is shared.key_bounds is None
    assert torch.equal(shared.input_ids, pack(TEXTS).input_ids)


@shared_by
@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2", "qwen2", "gemma3_text"])
def test_sharing_beginnings_changes_no_loss(arch: str, owners: list[int] | None) -> None:
    """Also where a layer's window is shorter than the texts."""
    model = tiny_model(arch, torch.float64, **(WINDOW if arch == "gemma3_text" else {}))
    chain = Chain(model, config(arch), range(1 if owners is None else 3))
    randomise(chain)
    losses = []
    for share in (False, True):
        batch = pack(branching(), owners, 7, None if owners is None else 3, share=share)
        chain.route = hard_route(model, batch)
        found = answer_losses(model, batch)
        losses.append(mean_per_group(found, batch.candidate, batch.candidates, batch.targets))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("arch", "fields"), [("llama", {}), ("gemma3_text", WINDOW)])
def test_sharing_beginnings_changes_no_loss_in_one_kernel(arch: str, fields: dict[str, Any]) -> None:
    model: Any = tiny_model(arch, torch.bfloat16, **fields)
    model.cuda()
    texts, losses = branching(), []
    for share in (False, True):
        batch = filled(pack(texts, share=share), 64).to("cuda")
        found = answer_losses(model, batch)
        losses.append(mean_per_group(found, batch.candidate, batch.candidates, batch.targets))
    torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)


@owned
def test_the_number_of_a_text_stands_beside_its_segment(owners: list[int] | None) -> None:
    """Also where equal texts are read once, where texts are padded, and in a batch that is filled up."""
    texts = [*TEXTS, TEXTS[1]]
    batch = packed(None if owners is None else [*owners, owners[1]], texts)
    given = batch.numbered([len(text.input_ids) for text in texts])
    assert given.numbers is not None
    own = zip(batch.lengths, batch.padding, strict=True)
    expected = [length - more + 1 if i in batch.texts else 0 for i, (length, more) in enumerate(own)]
    assert given.numbers.tolist() == expected
    more, rows = filled(given, 99), given.padded()
    assert more.numbers is not None
    assert more.numbers.tolist() == [*expected, *[0] * (len(more.lengths) - len(expected))]
    assert rows.numbers is not None
    assert rows.numbers.tolist() == (rows.attention_mask.sum(1) + 1).tolist()
