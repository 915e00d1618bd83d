"""Routers against loops over texts and tokens in float64, in every layout of a batch."""

import pytest
import torch
from torch.nn import functional as F

from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.errors import LorachainsError
from lorachains.filling import filled
from lorachains.routers import POOLS, Prompts, Routers, padded_prompts, router_losses, stream_prompts
from tests.batches import texts_of
from tests.mixtures import by_hand

TEXTS = texts_of((9, 2), (5, 4), (30, 1), (17, 16), (12, 6))
OWNERS = [2, 0, 2, 0, 3]
"""Nothing for the second of four experts."""


def routers(pool: str, hidden: int = 6) -> Routers:
    found = Routers(4, 2, hidden, pool, torch.float64)
    found.rows.data = torch.randn(found.rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return found


def embedded(ids: torch.Tensor) -> torch.Tensor:
    """Something for each token, of very different sizes."""
    place = torch.arange(6, dtype=torch.float64)
    return torch.sin(ids.double().unsqueeze(-1) * (place + 1)) * (1 + ids.unsqueeze(-1) % 50) + 0.1


def prompt(text: Tokens) -> torch.Tensor:
    return torch.tensor(text.input_ids[: len(text.input_ids) - len(text.answer)])


def of_stream(batch: TokenBatch) -> tuple[torch.Tensor, Prompts]:
    return embedded(batch.input_ids).unsqueeze(0), stream_prompts(batch)[0]


def of_rows(batch: TokenBatch) -> tuple[torch.Tensor, Prompts]:
    return embedded(batch.padded().input_ids), padded_prompts(batch)[0]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", ["stream", "filled", "rows"])
def test_a_pool_is_the_loop_over_the_prompts_tokens(pool: str, layout: str) -> None:
    """In the stream's order: by expert. No text's answer, no padding, and no other text gets in."""
    batch = pack(TEXTS, OWNERS, experts=4)
    if layout == "filled":
        batch = filled(batch, 64)
    x, prompts = of_rows(batch) if layout == "rows" else of_stream(batch)
    ours = routers(pool).pooled(x, prompts)[prompts.there]
    order = [1, 3, 0, 2, 4]
    theirs = torch.stack([by_hand(embedded(prompt(TEXTS[i])), pool) for i in order])
    assert prompts.owner[prompts.there].tolist() == [OWNERS[i] for i in order]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [of_stream, of_rows])
def test_the_loss_counts_each_text_once(layout: object) -> None:
    """The mean over blocks and texts of the cross-entropy, and each domain's part of it."""
    batch = pack(TEXTS, OWNERS, experts=4)
    x, prompts = of_stream(batch) if layout is of_stream else of_rows(batch)
    mine = routers("mean_rms")
    each = torch.stack([mine.block_logits(block, x, prompts) for block in range(2)])
    logits = mine.logits(torch.stack([mine.pooled(x, prompts)] * 2))
    torch.testing.assert_close(logits, each)
    parts, expected = router_losses(logits, prompts.domains(4)), torch.zeros(4, dtype=torch.float64)
    for text, owner in zip(TEXTS, OWNERS, strict=True):
        read = by_hand(embedded(prompt(text)), "mean_rms")
        for block in range(2):
            weight = mine.rows.view(4, 2, 6)[:, block]
            expected[owner] += F.cross_entropy(weight @ read, torch.tensor(owner)) / (2 * len(TEXTS))
    torch.testing.assert_close(parts, expected)
    assert parts[1] == 0


def test_routers_begin_without_an_opinion() -> None:
    fresh = Routers(4, 2, 6)
    x, prompts = of_stream(pack(TEXTS, OWNERS, experts=4))
    assert (fresh.block_logits(1, x, prompts) == 0).all()
    assert fresh.weight.shape == (2, 4, 6)


def test_spread_gives_each_token_what_its_text_has() -> None:
    batch = pack(TEXTS, OWNERS, experts=4)
    prompts, bounds = stream_prompts(batch)
    number = torch.arange(len(prompts.last), dtype=torch.float64).unsqueeze(1)
    expected = torch.repeat_interleave(number, torch.tensor(batch.lengths), dim=0)
    assert torch.equal(prompts.spread(number, bounds), expected)


def test_an_unknown_pool() -> None:
    with pytest.raises(LorachainsError, match=r"method.pool is 'max': choose mean_rms, mean, last"):
        Routers(4, 2, 6, "max")
