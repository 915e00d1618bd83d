"""What a user sees of a run: a progress bar in a terminal, and a line an epoch in the log."""

import logging
import time
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from lorachains.batch import TokenBatch

if TYPE_CHECKING:
    from lorachains.methods.method import Method

log = logging.getLogger(__name__)


class Progress(RichProgressBar):
    """A bar with loss, learning rate, link, validation score, speed in tokens a second, and the time left."""

    def get_metrics(self, trainer: L.Trainer, pl_module: "Method") -> dict[str, Any]:  # type: ignore[override]
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        journal = pl_module.journal.shown
        scores = [name for name in journal if name.startswith("val/") and name.count("/") == 1]
        for name in ("link", "train/loss", "train/lr", *scores):
            if name in journal and name != "val/loss":  # the log has it; a bar of one line has not the room
                shown[name] = journal[name]
        throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        if throughput.seconds:
            shown["tokens/s"] = throughput.tokens / throughput.seconds
        return {name.removeprefix("train/"): _short(value) for name, value in shown.items()}


def _short(value: Any) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Throughput(L.Callback):
    """Counts tokens (without padding) and seconds, over all processes of a resumed run, and logs a line an epoch.

    Attributes:
        counts: tokens trained on so far, of each adapter.
        seconds: spent in training steps so far, without the validation between two epochs.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.seconds = 0.0
        self._started, self._earlier = time.perf_counter(), 0.0
        self._since: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: TokenBatch, batch_idx: int
    ) -> None:
        if self._since is None:
            self._since = time.perf_counter()
        self.counts = [a + b for a, b in zip_longest(self.counts, batch.counts, fillvalue=0)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = None if trainer.is_last_batch else now

    @property
    def tokens(self) -> int:
        """Trained on so far, by all adapters."""
        return sum(self.counts)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: "Method") -> None:  # type: ignore[override]
        shown = {k: v for k, v in pl_module.journal.shown.items() if k == "train/loss" or k.startswith("val/")}
        log.info(
            "epoch %d of %s, optimizer step %d: %s%s; %.0f tokens/s",
            trainer.current_epoch + 1, trainer.max_epochs, trainer.global_step,
            f"means of {len(pl_module.seeds)} runs: " if len(pl_module.seeds) > 1 else "",
            ", ".join(f"{key} {value:.4g}" for key, value in shown.items()), self.tokens / max(self.seconds, 1e-9),
        )  # fmt: skip

    def run_seconds(self) -> float:
        """The age of the run, with that of the processes it was resumed from, up to their last checkpoints."""
        return self._earlier + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "seconds": self.seconds, "run_seconds": self.run_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts, self.seconds = list(state_dict["counts"]), state_dict["seconds"]
        self._earlier = state_dict["run_seconds"]
