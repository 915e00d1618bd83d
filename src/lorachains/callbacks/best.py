"""Each adapter's best epoch, kept as the method's snapshot: of a chain, the live link and the number of links tied by
then.

A chain can't go back by loading an earlier link alone: the knots tied since would stay under it. `Chain.restore`
rewinds the ledger (and merged weights) to the same moment.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L

from lorachains.errors import LorachainsError
from lorachains.evaluation import score_of

if TYPE_CHECKING:
    from lorachains.methods.method import Method


@dataclass(frozen=True)
class Best:
    """One adapter's best moment.

    Attributes:
        score: the criterion then, and what decides between equal ones; higher is better.
        step: the optimizer steps done by then.
        snapshot: what it had learned by then, see `Method.snapshot`.
        summary: its validation metrics.
    """

    score: tuple[float, ...]
    step: int
    snapshot: dict[str, Any]
    summary: dict[str, float]


class BestEpoch(L.Callback):
    """Remembers each adapter as it was when its validation was best. The first of equals wins.

    Args:
        select: "metric" (higher is better; of equal ones, the one with the lower loss), "loss" (lower is better), or
            "last" (the latest is best).

    Attributes:
        best: each adapter's best moment so far.
        validated: the optimizer step of the latest validation.

    Raises:
        LorachainsError: another criterion.
    """

    def __init__(self, select: str = "metric"):
        if select not in ("metric", "loss", "last"):
            raise LorachainsError(f"method.select is {select!r}: choose metric, loss or last")
        self.select = select
        self.best: list[Best] = []
        self.validated = -1

    def on_validation_end(self, trainer: L.Trainer, pl_module: "Method") -> None:  # type: ignore[override]
        if trainer.sanity_checking:
            return
        self.validated = step = trainer.global_step
        summaries = pl_module.adapter_summaries("val")
        for expert, (summary, told) in enumerate(zip(summaries, pl_module.criteria(summaries), strict=True)):
            loss, metric = told["loss"], score_of(told)
            score = {"metric": (metric, -loss), "loss": (-loss,), "last": (float(step),)}[self.select]
            if expert == len(self.best) or score > self.best[expert].score:
                self.best[expert : expert + 1] = [Best(score, step, pl_module.snapshot(expert), summary)]

    def restore(self, pl_module: "Method") -> None:
        """Brings each adapter of the module back to its best moment."""
        pl_module.restore([best.snapshot for best in self.best])

    def state_dict(self) -> dict[str, Any]:
        return {"best": [dict(vars(best)) for best in self.best], "validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = [Best(**{**best, "score": tuple(best["score"])}) for best in state_dict["best"]]
        self.validated = state_dict["validated"]
