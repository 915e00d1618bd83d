"""From the routers' logits to experts: one decision a text, made from its prompt and kept while it is answered.

The paper doesn't say whether each block goes by its own router or all by one decision. Here: "vote" (the default), one
expert by the majority of all blocks, so that a block whose router errs does no harm, and the answer is one expert's,
which can be taken out and used alone; "argmax", each block by its own router; "first" and "last", one block for all;
"soft", each block by a weighted sum of experts, of the best `top_k` or of all.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lorachains.errors import LorachainsError

MODES = ("vote", "argmax", "first", "last", "soft")


def check_decision(mode: str, top_k: int | None, experts: int) -> None:
    """Raises a LorachainsError for an unknown mode, or for a `top_k` that doesn't fit."""
    if mode not in MODES:
        raise LorachainsError(f"decision is {mode!r}: choose {', '.join(MODES)}")
    if top_k is not None and not (type(top_k) is int and 1 <= top_k <= experts):
        raise LorachainsError(
            f"method.top_k is {top_k!r}: give a number from 1 to {experts} (the experts), or null for all"
        )


def soft_weights(logits: Float[Tensor, "*any experts"], top_k: int | None = None) -> Float[Tensor, "*any experts"]:
    """The softmax over the `top_k` largest logits (over all if `None`); zero for the others."""
    if top_k is None or top_k == logits.shape[-1]:
        return logits.softmax(-1)
    best = logits.topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))


def straight_through(logits: Float[Tensor, "*any experts"]) -> Float[Tensor, "*any experts"]:
    """One for the best expert and zero for the others, with the softmax's gradient."""
    soft = logits.softmax(-1)
    return hard_weights(soft) + soft - soft.detach()


def hard_weights(logits: Float[Tensor, "*any experts"]) -> Float[Tensor, "*any experts"]:
    """One for the best expert and zero for the others, without a gradient."""
    return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)


def check_voters(voters: object, blocks: int) -> None:
    """Raises a LorachainsError unless the voters are different blocks, one at least; `None` is all."""
    if voters is None:
        return
    given = list(voters) if isinstance(voters, Sequence) and not isinstance(voters, str) else []
    known = all(type(block) is int and 0 <= block < blocks for block in given)
    if not given or not known or len(set(given)) < len(given):
        raise LorachainsError(
            f"method.voters is {given or voters!r}: give numbers from 0 to {blocks - 1} (the blocks) in a list, "
            "each once, or null"
        )


def one_expert(
    logits: Float[Tensor, "blocks texts experts"], mode: str, voters: Sequence[int] | None = None
) -> Int64[Tensor, " texts"]:
    """The one expert of each text, by "vote", "first" or "last".

    Of experts with equally many votes that with the larger mean probability wins.

    Args:
        voters: the blocks that vote; all if `None`.
    """
    if mode == "first":
        return logits[0].argmax(-1)
    if mode == "last":
        return logits[-1].argmax(-1)
    logits = logits if voters is None else logits[list(voters)]
    votes = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0).sum(0)
    # A mean over blocks is at most 1: it decides between equals, and only between these.
    return (votes + logits.softmax(-1).mean(0) / 2).argmax(-1)


def agreement(
    logits: Float[Tensor, "blocks texts experts"], voters: Sequence[int] | None = None
) -> Float[Tensor, " texts"]:
    """The share of all blocks that are of the opinion of the vote."""
    return (logits.argmax(-1) == one_expert(logits, "vote", voters)).to(logits.dtype).mean(0)
