"""The run's one checkpoint: adapters, ledger, optimizer and loop state, a few megabytes, replaced as it goes."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

log = logging.getLogger(__name__)


class LastCheckpoint(L.Callback):
    """Saves the run every so many optimizer steps and after each epoch, once it is validated, if time has passed.

    Resuming from any of these moments gives the run that was never stopped, bit for bit on the CPU.

    Args:
        path: the file, replaced whole.
        every: optimizer steps between two checkpoints within an epoch.
        seconds: no two checkpoints are made within so many seconds: quick steps shouldn't wait for the disk.
        forks: further files, by the number of optimizer steps after which the state is saved there as well.
    """

    def __init__(self, path: Path, every: int, seconds: float = 0.0, forks: Mapping[int, Path] | None = None):
        self.path, self.every, self.seconds, self.forks = path, every, seconds, dict(forks or {})
        self._saved, self._made, self._at = 0, 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        made, self._made = trainer.global_step > self._made, trainer.global_step
        # Between two steps of accumulated gradients nothing is saved: it would be without them.
        # The epoch's last batch is left to on_train_epoch_end: saved here, the epoch's validation would be skipped.
        if made and not trainer.is_last_batch:
            self._fork(trainer)
            if (trainer.global_step - self._saved) % self.every == 0:
                self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fork(trainer)
        self._save(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = self._made = trainer.global_step

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            kept = f"resume=true goes on after step {self._saved}" if self.path.is_file() else "no checkpoint yet"
            log.warning("interrupted after optimizer step %d: %s", trainer.global_step, kept)

    def _fork(self, trainer: L.Trainer) -> None:
        if (path := self.forks.get(trainer.global_step)) is not None:
            self._write(trainer, path)

    def _save(self, trainer: L.Trainer) -> None:
        due = time.monotonic() - self._at >= self.seconds
        if not trainer.strategy.broadcast(due):  # several processes go by the first one's clock
            return
        self._saved, self._at = trainer.global_step, time.monotonic()
        self._write(trainer, self.path)

    @staticmethod
    def _write(trainer: L.Trainer, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        trainer.save_checkpoint(part)  # not in one piece where the system's temporary folder is on another disk
        if trainer.is_global_zero:
            part.replace(path)
