"""Decisions against a count by hand."""

import re
from collections import Counter
from typing import Any

import pytest
import torch

from lorachains.decisions import agreement, check_decision, check_voters, one_expert, soft_weights, straight_through
from lorachains.errors import LorachainsError

LOGITS = torch.randn(7, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_vote_is_the_majority_and_equals_go_by_probability() -> None:
    probabilities, ties = LOGITS.softmax(-1).mean(0), 0
    for text, winner in enumerate(one_expert(LOGITS, "vote").tolist()):
        votes = Counter(LOGITS[:, text].argmax(-1).tolist())
        best = [expert for expert, count in votes.items() if count == max(votes.values())]
        ties += len(best) > 1
        assert winner == max(best, key=lambda expert: probabilities[text, expert])
        assert agreement(LOGITS)[text] == pytest.approx(votes[winner] / 7)
    assert ties > 5


def test_those_who_do_not_vote_do_not_count() -> None:
    voters = [5, 1, 6]
    assert torch.equal(one_expert(LOGITS, "vote", voters), one_expert(LOGITS[voters], "vote"))
    assert not torch.equal(one_expert(LOGITS, "vote", voters), one_expert(LOGITS, "vote"))
    assert torch.equal(one_expert(LOGITS, "vote", range(7)), one_expert(LOGITS, "vote"))


@pytest.mark.parametrize("voters", [[], [7], [-1], [1, 1], [True], 1, 0, "1"])
def test_voters_are_blocks(voters: Any) -> None:
    with pytest.raises(LorachainsError, match=rf"method.voters is {re.escape(repr(voters))}: give numbers from 0 to 6"):
        check_voters(voters, 7)


def test_one_block_for_all() -> None:
    assert torch.equal(one_expert(LOGITS, "first"), LOGITS[0].argmax(-1))
    assert torch.equal(one_expert(LOGITS, "last"), LOGITS[6].argmax(-1))


@pytest.mark.parametrize("top_k", [1, 2, 4, None])
def test_soft_weights_are_the_softmax_of_the_best(top_k: int | None) -> None:
    ours = soft_weights(LOGITS, top_k)
    for logits, weights in zip(LOGITS.flatten(0, 1), ours.flatten(0, 1), strict=True):
        kept = sorted(range(4), key=lambda e: -logits[e])[: top_k or 4]
        total = sum(logits[e].exp() for e in kept)
        expected = [logits[e].exp() / total if e in kept else 0.0 for e in range(4)]
        torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_straight_through_is_hard_with_the_soft_gradient() -> None:
    logits, value = LOGITS[0].clone().requires_grad_(), torch.arange(4.0, dtype=torch.float64)
    hard = straight_through(logits)
    torch.testing.assert_close(hard, torch.eye(4, dtype=torch.float64)[logits.argmax(-1)])
    [ours] = torch.autograd.grad((hard * value).sum(), logits)
    [theirs] = torch.autograd.grad((logits.softmax(-1) * value).sum(), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("mode", "top_k", "says"),
    [("best", None, "decision is 'best'"), ("soft", 5, "method.top_k is 5: give a number from 1 to 4"),
     ("soft", 0, "method.top_k is 0")],
)  # fmt: skip
def test_refusals(mode: str, top_k: int | None, says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        check_decision(mode, top_k, 4)
