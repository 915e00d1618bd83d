"""When to tie a knot, and how: the schedules of config group `knots` (COLA §3.2, §6.2; Algorithm 1's τ).

A knot at τ is tied when τ optimizer steps are done, before the next one; Algorithm 1, whose iterations count from 1,
says τ + 1 for the same moment. Link i is trained between knots i-1 and i.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from lorachains.errors import LorachainsError

DRIFT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far a knot may move the logits of the probe batch, by the base's precision: rounding, and nothing more.

An int8 base counts as bfloat16, whatever its other weights are: a number that a layer reads may round to another of 255
steps where the sum before it differs in its last digit, with a knot or without one.
"""


@dataclass(frozen=True, kw_only=True)
class Knots:
    """What all schedules share: how a knot is tied and how the chain goes on. By itself it ties none.

    Args:
        mode: "ledger" keeps tied links as frozen factors (exact); "merge" adds them to the weights (the paper's way).
        ranks: the rank of each link (§6.2 "rank step-down"), `adapter.r` for all by default.
        scaling: with `ranks`, what stays constant: "ratio" keeps alpha / r as `adapter` has it (a link's update is
            scaled alike whatever its rank), "alpha" keeps alpha itself. The paper doesn't say which.
        init: "fresh" draws a new Gaussian `A` for each link (§3.2), "first" starts each from `A_0` (Algorithm 1).
        lr: "continue" leaves the schedule as it is over the whole run; "restart" runs it anew over each link;
            "rewarm" restarts it with a linear warm-up. The paper doesn't say which; "continue" is the least change.
        warmup: optimizer steps of the warm-up after a knot, with lr "rewarm".
        requantize: whether "merge" may add links to quantised weights: they are dequantised, added to in float32 and
            quantised anew, which loses most of a small update.
        tolerance: how far a knot may move the logits of the probe batch, `‖after − before‖ / ‖before‖`; by the
            precision of the base if not given (`DRIFT_TOLERANCE`; of an int8 base, bfloat16's).

    Raises:
        LorachainsError: a value outside its choices or range.
    """

    mode: Literal["ledger", "merge"] = "ledger"
    ranks: Sequence[int] | None = None
    scaling: Literal["ratio", "alpha"] = "ratio"
    init: Literal["fresh", "first"] = "fresh"
    lr: Literal["continue", "restart", "rewarm"] = "continue"
    warmup: int = 10
    requantize: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        choices = {
            "mode": ("ledger", "merge"),
            "scaling": ("ratio", "alpha"),
            "init": ("fresh", "first"),
            "lr": ("continue", "restart", "rewarm"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise LorachainsError(f"knots.{key} is {getattr(self, key)!r}: choose {' or '.join(allowed)}")
        _check_whole_numbers("ranks", self.ranks or [])
        if self.ranks is not None and any(rank < 1 for rank in self.ranks):
            raise LorachainsError(f"knots.ranks is {list(self.ranks)}: give ranks of at least 1")
        if type(self.warmup) is not int or self.warmup < 0:
            raise LorachainsError(f"knots.warmup is {self.warmup!r}: give a number of optimizer steps, 0 or more")
        if not isinstance(self.requantize, bool) or (self.requantize and self.mode != "merge"):
            raise LorachainsError(
                f"knots.requantize is {self.requantize!r} with knots.mode={self.mode}: give true with "
                "knots.mode=merge only, or false"
            )
        if self.tolerance is not None and not (isinstance(self.tolerance, int | float) and self.tolerance > 0):
            raise LorachainsError(f"knots.tolerance is {self.tolerance!r}: give a number above 0, or null")

    def positions(self, total: int, per_epoch: int) -> list[int]:
        """The optimizer steps after which knots are tied, ascending, each in `[1, total - 1]`.

        Args:
            total: optimizer steps of the whole run.
            per_epoch: optimizer steps of one epoch.

        Raises:
            LorachainsError: a knot lies outside the run.
        """
        return []

    def plan(self, total: int, per_epoch: int) -> list[int]:
        """`positions`, checked: inside the run, and `ranks` gives each link one.

        Raises:
            LorachainsError: names the knot, or the number of links and of ranks.
        """
        steps = sorted(set(self.positions(total, per_epoch)))
        for step in steps:
            if not 0 < step < total:
                raise LorachainsError(
                    f"knots asks for a knot after optimizer step {step}, but the run has {total} ({per_epoch} an epoch)"
                    f" and the last knot must leave a step to its link: choose knots in 1…{total - 1}, or train longer"
                )
        if self.ranks is not None and len(self.ranks) != len(steps) + 1:
            raise LorachainsError(
                f"knots.ranks gives {len(self.ranks)} ranks for a chain of {len(steps) + 1} links: give one a link"
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class Even(Knots):
    """`links` links of equal length, counted in whole epochs where the run has as many; earlier links take the rest.

    Five epochs in two links are 3 + 2, as in the paper (§6.2); in three links 2 + 2 + 1, which it leaves open.

    Args:
        unit: "epoch", "step" (optimizer steps), or "auto": epochs if the run has `links` whole ones.
    """

    links: int = 3
    unit: Literal["auto", "epoch", "step"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("auto", "epoch", "step"):
            raise LorachainsError(f"knots.unit is {self.unit!r}: choose auto, epoch or step")

    def positions(self, total: int, per_epoch: int) -> list[int]:
        if type(self.links) is not int or self.links < 1:
            raise LorachainsError(f"knots.links is {self.links!r}: give a whole number of links, at least 1")
        if self.links > total:
            raise LorachainsError(
                f"knots.links is {self.links}, but the run has {total} optimizer steps, of which each link needs one: "
                "give fewer links, or train longer"
            )
        epochs, rest = divmod(total, per_epoch)
        whole = not rest and epochs >= self.links
        if self.unit == "epoch" and not whole:
            raise LorachainsError(
                f"knots.unit=epoch can't split {total / per_epoch:.3g} epochs into {self.links} links of whole epochs: "
                "use knots.unit=step"
            )
        size = per_epoch if whole and self.unit != "step" else 1
        length, longer = divmod(total // size, self.links)
        return [size * (length * link + min(link, longer)) for link in range(1, self.links)]


@dataclass(frozen=True, kw_only=True)
class AtEpochs(Knots):
    """Knots after the given epochs, counted from 1: `epochs=[3]` is the paper's chain of two, 3 + 2 (§6.2)."""

    epochs: Sequence[int] = field(default_factory=list)

    def positions(self, total: int, per_epoch: int) -> list[int]:
        _check_whole_numbers("epochs", self.epochs)
        return [epoch * per_epoch for epoch in self.epochs]


@dataclass(frozen=True, kw_only=True)
class AtSteps(Knots):
    """Knots after the given numbers of optimizer steps."""

    steps: Sequence[int] = field(default_factory=list)

    def positions(self, total: int, per_epoch: int) -> list[int]:
        _check_whole_numbers("steps", self.steps)
        return list(self.steps)


@dataclass(frozen=True, kw_only=True)
class Every(Knots):
    """A knot every `n_steps` optimizer steps."""

    n_steps: int = 500

    def positions(self, total: int, per_epoch: int) -> list[int]:
        if type(self.n_steps) is not int or self.n_steps < 1:
            raise LorachainsError(f"knots.n_steps is {self.n_steps!r}: give at least 1 optimizer step")
        if self.n_steps >= total:
            raise LorachainsError(
                f"knots.n_steps is {self.n_steps}, but the run has {total} optimizer steps and so no knot: "
                "lower it, train longer, or use knots=none"
            )
        return list(range(self.n_steps, total, self.n_steps))


def _check_whole_numbers(key: str, values: object) -> None:
    if not isinstance(values, list | tuple) or any(type(value) is not int for value in values):
        raise LorachainsError(f"knots.{key} is {values!r}: give a list of whole numbers, as [3]")
