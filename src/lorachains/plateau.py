"""A knot where the training loss stops improving: what COLA §7 leaves as future work.

"Use the convergence behavior of the loss to determine where and whether to introduce additional LoRAs": where is
`Watch.due`; whether is its rule that the chain ends with a link that has not improved the loss. A knot leaves the
function as it is (§3.2), so a successor would begin at the same loss, with the same recipe and a smaller learning rate
left; it differs from the link that found nothing by the draw of its `A` alone.
"""

import logging
import math
from dataclasses import dataclass, fields
from typing import Any

from lorachains.errors import LorachainsError
from lorachains.knots import Knots

log = logging.getLogger(__name__)

LAG = 8
"""A step's loss is looked at when so many further optimizer steps are done, so that no step has to wait for it."""


@dataclass(frozen=True, kw_only=True)
class Plateau(Knots):
    """A knot when the smoothed training loss has not improved for `patience` optimizer steps.

    With `lr` "restart" or "rewarm" the schedule runs from each knot to the end of the run: where the next knot will be
    isn't known.

    Args:
        links: at most so many links.
        patience: optimizer steps without an improvement before a knot.
        min_improvement: the share by which the smoothed loss has to fall below its lowest value of the link to count as
            an improvement. A link that hasn't improved on the loss at its beginning is the last one.
        decay: of the exponential mean (bias-corrected, as Adam's moments) that smooths the loss of each optimizer step.
        min_steps: no link has fewer optimizer steps, the last one included.

    Raises:
        LorachainsError: a value outside its range.
    """

    links: int = 3
    patience: int = 50
    min_improvement: float = 0.01
    decay: float = 0.98
    min_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("links", "patience", "min_steps"):
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise LorachainsError(f"knots.{key} is {value!r}: give a whole number, 1 or more")
        for key in ("min_improvement", "decay"):
            value = getattr(self, key)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise LorachainsError(f"knots.{key} is {value!r}: give a number in [0, 1)")

    def plan(self, total: int, per_epoch: int) -> list[int]:
        """No knot is known before the training.

        Raises:
            LorachainsError: `ranks` doesn't give each of the `links` one.
        """
        if self.ranks is not None and len(self.ranks) != self.links:
            raise LorachainsError(
                f"knots.ranks gives {len(self.ranks)} ranks for a chain of up to {self.links} links: give one a link"
            )
        soonest = max(self.min_steps, 2 + self.patience + LAG)  # the second loss is the first that can be lower
        if self.links > 1 and soonest + self.min_steps > total:
            log.warning(
                "no knot will be tied: the first can come after optimizer step %d and leaves %d to its link, but the "
                "run has %d; lower knots.patience or knots.min_steps",
                soonest, self.min_steps, total,
            )  # fmt: skip
        return []


@dataclass
class Watch:
    """Looks at the losses of a run, and says when a knot is due.

    Args:
        knots: the settings.

    Attributes:
        seen: how many optimizer steps' losses it has seen.
        mean: their exponential mean, not yet corrected for its beginning at zero.
        links: of the chain.
        begun: the optimizer steps done when the live link began.
        best: the lowest smoothed loss of the live link, by steps of `min_improvement`; at first that of its beginning.
        since: the optimizer step of `best`.
        improved: whether the live link has improved the loss.
        ended: whether no further knot would help.
    """

    knots: Plateau
    seen: int = 0
    mean: float = 0.0
    links: int = 1
    begun: int = 0
    best: float = math.inf
    since: int = 0
    improved: bool = False
    ended: bool = False

    @property
    def smoothed(self) -> float:
        """The bias-corrected exponential mean of the losses seen so far."""
        return self.mean / (1 - self.knots.decay**self.seen)

    def see(self, loss: float) -> None:
        """Takes in the next optimizer step's loss."""
        self.seen += 1
        self.mean = self.knots.decay * self.mean + (1 - self.knots.decay) * loss
        if self.seen <= max(self.begun, 1):  # of the link before
            self.best, self.since = self.smoothed, self.seen
        elif self.smoothed < self.best * (1 - self.knots.min_improvement):
            self.best, self.since, self.improved = self.smoothed, self.seen, True

    def due(self, step: int, total: int) -> bool:
        """Whether a knot is to be tied now.

        Args:
            step: optimizer steps done; their losses have been seen up to `LAG` before.
            total: of the whole run.
        """
        if self.ended or self.links == self.knots.links or not math.isfinite(self.mean):
            return False
        flat = self.seen - self.since >= self.knots.patience and step - self.begun >= self.knots.min_steps
        if not flat or total - step < self.knots.min_steps:
            return False
        self.ended = not self.improved
        if self.ended:
            log.info(
                "link %d has not improved the smoothed training loss, now %.4g, by %.3g%%: no further knot",
                self.links, self.smoothed, 100 * self.knots.min_improvement,
            )  # fmt: skip
        return self.improved

    def tied(self, step: int) -> None:
        """A link begins, after so many optimizer steps."""
        self.links, self.begun, self.improved = self.links + 1, step, False

    def state(self) -> dict[str, Any]:
        """All that it remembers, for `load`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "knots"}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state()`."""
        for name, value in state.items():
            setattr(self, name, value)
