"""A run, from fit to the files in its folder: what `train.py` schedules."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger

from lorachains.callbacks.checkpoint import LastCheckpoint
from lorachains.callbacks.progress import Progress, Throughput
from lorachains.evaluation import summarise
from lorachains.memory import peak_memory
from lorachains.methods import Lora
from lorachains.models import fingerprint
from lorachains.peft_format import save_adapter
from lorachains.run_folder import RunFolder


class Session:
    """Fits a method, tests it at its last and at its best epoch, and writes what came out.

    Args:
        folder: where to.
        every: optimizer steps between two checkpoints.
    """

    def __init__(self, method: Lora, data: L.LightningDataModule, folder: RunFolder, logger: Logger, every: int):
        self.method, self.data, self.folder, self.logger = method, data, folder, logger
        self.fingerprint = fingerprint(method.model)  # before training: a merge changes the weights
        self.throughput = Throughput()
        self.callbacks: list[L.Callback] = [self.throughput, Progress(), LastCheckpoint(folder.checkpoint, every)]

    def fit(self, trainer: L.Trainer, checkpoint: Path | None) -> None:
        """Trains to the end, from the checkpoint if there is one; validates the last step if no epoch ended there."""
        self.trainer = trainer
        trainer.fit(self.method, self.data, ckpt_path=checkpoint, weights_only=True)
        if self.method.best.validated != trainer.global_step:
            trainer.validate(self.method, self.data, verbose=False)

    def finish(self) -> dict[str, float]:
        """Tests, saves the adapter and the predictions, and writes `metrics.json`.

        Returns:
            The metrics, flat: `<split>/<metric>` at the best epoch, `<split>_last/…` at the last.
        """
        best = self.method.best
        links = len(self.method.chain.ranks) + 1  # before the best epoch takes some back
        last = self._test()
        best.restore(self.method)
        at_best = last if all(b.step == self.trainer.global_step for b in best.best) else self._test()
        self.folder.write_predictions(self.method.predictions["test"])
        metrics = {f"test/{k}": v for k, v in at_best.items()} | {f"test_last/{k}": v for k, v in last.items()}
        for expert, (name, moment) in enumerate(zip(self.method.names, best.best, strict=True)):
            alone = len(self.method.names) == 1
            folder = self.folder.adapter if alone else self.folder.adapters / name
            save_adapter(self.method.chain, folder, self.method.base.name, self.fingerprint, expert)
            of = "" if alone else f"{name}/"
            metrics |= {f"val/{of}{k}": v for k, v in moment.summary.items()} | {
                f"best/{of}optimizer_step": moment.step
            }
        metrics |= self._costs() | {"train/links": links}
        self.logger.log_metrics(metrics, step=self.trainer.global_step)
        self.folder.write_metrics(metrics)
        return metrics

    def _test(self) -> dict[str, float]:
        self.trainer.test(self.method, self.data, verbose=False)
        return summarise(self.method.predictions["test"], self.method.tasks)

    def _costs(self) -> dict[str, float]:
        peak = peak_memory(self.method.device)
        memory = {} if peak is None else {"run/peak_memory_bytes": peak}
        return memory | {
            "train/optimizer_steps": self.trainer.global_step,
            "train/tokens": self.throughput.tokens,
            "train/seconds": self.throughput.seconds,
            "train/tokens_per_second": self.throughput.tokens / max(self.throughput.seconds, 1e-9),
            "run/seconds": self.throughput.run_seconds(),
            "adapter/trainable_parameters": sum(p.numel() for p in self.method.chain.parameters()),
            "adapter/rank": sum(self.method.chain.ranks) + self.method.chain.rank,
        }
