"""The log-likelihoods of all task names as the selector's answer, without generating (exact task selection).

The names' tokens, each name closed by the end token, form a trie behind one shared prompt: what names have in common is
read once. Its nodes can be given to a model in one pass, flattened, with `positions` and `mask`.

Not in the paper, which generates and searches: probabilities over the names are calibrated as far as the selector is,
give any top-k, and a text that names other tasks can't put them into the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorachains.errors import LorachainsError

Scorer = Callable[[list[list[int]]], Tensor]
"""Gives of texts, each read behind one prompt, the log-probability in nats of the last token after all before it.

`(texts,)`, or `(rows, texts)` for several prompts.
"""


class NameTrie:
    """The token trie of names. A node is a token after those above it; nodes come parents first.

    Args:
        names: each one's tokens.
        end: the token that closes a name, and makes one name no beginning of another.

    Attributes:
        tokens: each node's.
        paths: each node's tokens from the first on, its own the last.
        parents: the node above each node; -1 for those behind the prompt.
        leaves: each name's last node.

    Raises:
        LorachainsError: there is no name, one has no token or holds the end token, or two are the same.
    """

    def __init__(self, names: Sequence[Sequence[int]], end: int) -> None:
        self.paths: list[list[int]] = []
        self.parents: list[int] = []
        index: dict[tuple[int, ...], int] = {(): -1}
        for number, name in enumerate(names):
            if not name or end in name:
                raise LorachainsError(f"task name {number} has the tokens {list(name)}: give some, and none of the end")
            path = (*name, end)
            if path in index:
                raise LorachainsError(f"task name {number} has the tokens of another one, {list(name)}: rename it")
            for length in range(1, len(path) + 1):
                if path[:length] not in index:
                    index[path[:length]] = len(self.paths)
                    self.paths.append(list(path[:length]))
                    self.parents.append(index[path[: length - 1]])
        if not self.paths:
            raise LorachainsError("there are no task names to score: give at least one")
        self.tokens = [path[-1] for path in self.paths]
        self.leaves = [index[*name, end] for name in names]

    @property
    def lengths(self) -> Int64[Tensor, " names"]:
        """Each name's tokens, the end token too."""
        return torch.tensor([len(self.paths[leaf]) for leaf in self.leaves])

    @property
    def positions(self) -> Int64[Tensor, " nodes"]:
        """Each node's place behind the prompt, from 0."""
        return torch.tensor([len(path) - 1 for path in self.paths])

    @cached_property
    def mask(self) -> Bool[Tensor, "nodes nodes"]:
        """Which nodes each node attends to, beside the prompt: itself and those above it."""
        mask = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    def log_likelihoods(self, edges: Float[Tensor, "*rows nodes"]) -> Float[Tensor, "*rows names"]:
        """The total log-likelihood of each name, in nats.

        Args:
            edges: each node's log-probability after the prompt and the nodes above it, in nats.
        """
        on_path = self.mask[self.leaves].to(edges.device)
        # No matrix product: where a token off the path is impossible, 0 · (-inf) would be no number.
        return edges.unsqueeze(-2).masked_fill(~on_path, 0.0).sum(-1)

    def score(self, scorer: Scorer) -> Float[Tensor, "*rows names"]:
        """The total log-likelihood of each name, in nats, of what a scorer says of the nodes."""
        return self.log_likelihoods(scorer(self.paths))


def probabilities(
    log_likelihoods: Float[Tensor, "*rows names"], lengths: Int64[Tensor, " names"] | None = None
) -> Float[Tensor, "*rows names"]:
    """The probability of each name, given that one of them is the answer.

    Args:
        lengths: the names' tokens, to compare means a token instead of totals: long names are then no less likely for
            their length, but the result only ranks the names, it is not calibrated.
    """
    return (log_likelihoods if lengths is None else log_likelihoods / lengths.to(log_likelihoods)).softmax(-1)


@dataclass(frozen=True)
class Selected:
    """The likeliest names of one text, best first, by their indices; `sure` if the first reaches the threshold."""

    names: list[int]
    probabilities: list[float]
    sure: bool


def select(probabilities: Float[Tensor, "rows names"], k: int = 1, threshold: float = 0.0) -> list[Selected]:
    """The k likeliest names of each text; of equally likely ones the first.

    Args:
        k: all names if there are fewer.
        threshold: the least probability of a name that is to be trusted.

    Raises:
        LorachainsError: k is below 1, or the threshold is no probability.
    """
    if k < 1 or not 0 <= threshold <= 1:
        raise LorachainsError(f"k={k}, threshold={threshold}: give a k of at least 1 and a threshold from 0 to 1")
    values, names = probabilities.sort(dim=-1, descending=True, stable=True)
    rows = zip(names[:, :k].tolist(), values[:, :k].tolist(), strict=True)
    return [Selected(best, likely, likely[0] >= threshold) for best, likely in rows]
