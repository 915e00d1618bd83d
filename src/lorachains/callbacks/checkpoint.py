"""The run's one checkpoint: adapters, ledger, optimizer and loop state, a few megabytes, replaced as it goes."""

import logging
from pathlib import Path
from typing import Any

import lightning as L

log = logging.getLogger(__name__)


class LastCheckpoint(L.Callback):
    """Saves the run every so many optimizer steps and after each epoch, once its validation is done.

    Resuming from any of these moments gives the run that was never stopped, bit for bit on the CPU.

    Args:
        path: the file, replaced whole.
        every: optimizer steps between two checkpoints within an epoch.
    """

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self._saved = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The epoch's last batch is left to on_train_epoch_end: saved here, the epoch's validation would be skipped.
        if trainer.global_step >= self._saved + self.every and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = trainer.global_step

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            kept = f"resume=true goes on after step {self._saved}" if self.path.is_file() else "no checkpoint yet"
            log.warning("interrupted after optimizer step %d: %s", trainer.global_step, kept)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved = trainer.global_step
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)  # not in one piece where the system's temporary folder is on another disk
        part.replace(self.path)
