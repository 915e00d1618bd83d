"""What is told of a mixture's domains: how often routers find the right one, and what each expert loses on each."""

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from lorachains.data.tokens import EvalBatch
from lorachains.decisions import agreement, one_expert
from lorachains.selection.report import Confusion


class Routes:
    """Collects router logits of texts whose domain is known.

    Args:
        names: the domains.
        mode, voters: how a text's expert is decided on, see `decisions`.
    """

    def __init__(self, names: Sequence[str], mode: str = "vote", voters: Sequence[int] | None = None):
        self.names, self.mode, self.voters = names, mode, voters
        self._labels: list[int] = []
        self._logits: list[Tensor] = []

    def note(self, labels: Sequence[int], logits: Tensor) -> None:
        """Takes down the logits `(blocks, texts, experts)` of texts of these domains."""
        self._labels += labels
        self._logits.append(logits)

    def metrics(self) -> dict[str, float]:
        """`router/…`: the share of texts whose expert is that of their domain, and of those for each domain.

        Also of each block by itself ("block/0" is the first), of the vote, and the blocks' `agreement` with it. Where
        blocks decide by themselves, `router/accuracy` is the mean over blocks. All of the pass that decides, which is
        told no label.
        """
        if not self._labels:
            return {}
        logits, labels = self._all(), torch.tensor(self._labels)
        by_block = (logits.argmax(-1) == labels).double()
        right = by_block.mean(0) if self.mode in ("argmax", "soft") else (self._decided(logits) == labels).double()
        found = {
            "router/accuracy": right.mean(),
            "router/voted": (one_expert(logits, "vote", self.voters) == labels).double().mean(),
            "router/agreement": agreement(logits, self.voters).mean(),
        }
        found |= {f"router/block/{i}": share for i, share in enumerate(by_block.mean(1))}
        for i, name in enumerate(self.names):
            if (mine := labels == i).any():
                found[f"router/{name}/accuracy"] = right[mine].mean()
        return {key: float(value) for key, value in found.items()}

    def confusion(self) -> Confusion:
        """Which expert was decided on for texts of which domain; the vote's where blocks decide by themselves."""
        return Confusion(self.names, self._labels, self._decided(self._all()).tolist())

    def _all(self) -> Tensor:
        return torch.cat([part.double().cpu() for part in self._logits], 1)

    def _decided(self, logits: Tensor) -> Tensor:
        return one_expert(logits, self.mode if self.mode in ("first", "last") else "vote", self.voters)


class DomainLosses:
    """Adds up the gold answers' losses by domain, of several ways to answer.

    Args:
        names: the domains.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._parts: dict[str, list[tuple[list[int], list[int], Tensor]]] = {}

    def note(self, way: str, batch: EvalBatch, losses: Tensor) -> None:
        """Takes down what one way to answer has lost.

        Args:
            losses: of each candidate, in nats a token, example by example.
        """
        domains, tokens, gold, start = [], [], [], 0
        for row in batch.rows:
            gold.append(start + row.example.gold)
            tokens.append(len(row.choices[row.example.gold].answer))
            domains.append(row.task)
            start += len(row.choices)
        index = torch.tensor(gold, device=losses.device)
        self._parts.setdefault(way, []).append((domains, tokens, losses[index]))

    def losses(self, way: str) -> dict[str, float]:
        """Each domain's mean loss of an answer token, in nats."""
        total, counts = [0.0] * len(self.names), [0] * len(self.names)
        for domains, tokens, losses in self._parts.get(way, []):
            for domain, n, loss in zip(domains, tokens, losses.tolist(), strict=True):
                total[domain] += n * loss
                counts[domain] += n
        return {name: t / n for name, t, n in zip(self.names, total, counts, strict=True) if n}

    def metrics(self, way: str) -> dict[str, float]:
        """`<way>/loss` and perplexities, see `perplexities`."""
        losses = self.losses(way)
        return {f"{way}/loss": fmean(losses.values()), **perplexities(way, losses)} if losses else {}

    def heat_map(self) -> dict[str, dict[str, float]]:
        """Each domain's loss with each expert: domain to expert to nats. Empty where it wasn't taken."""
        ways = {name: self.losses(name) for name in self.names if name in self._parts}
        return {name: {expert: losses[name] for expert, losses in ways.items()} for name in self.names} if ways else {}


def perplexities(way: str, losses: dict[str, float]) -> dict[str, float]:
    """`<way>/perplexity`, the mean of the domains' (as the paper's tables have it), `<way>/perplexity_geometric`, their
    geometric mean, and each domain's own as `<way>/<domain>/perplexity`."""
    each = {name: math.exp(loss) if loss < 700 else math.inf for name, loss in losses.items()}
    geometric = math.exp(min(700.0, fmean(losses.values())))
    own = {f"{way}/{name}/perplexity": value for name, value in each.items()}
    return {f"{way}/perplexity": fmean(each.values()), f"{way}/perplexity_geometric": geometric, **own}
