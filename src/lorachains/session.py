"""A session: runs that are trained side by side, from fit to the files in their folders."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger

from lorachains.callbacks.checkpoint import LastCheckpoint
from lorachains.callbacks.flops import FlopsCount
from lorachains.callbacks.progress import Progress, Throughput
from lorachains.data.runs import RunsDataModule
from lorachains.data.statistics import token_counts, told
from lorachains.evaluation import summarise
from lorachains.memory import peak_memory
from lorachains.methods import Method
from lorachains.parallel import gathered, writes
from lorachains.run_folder import RunFolder

log = logging.getLogger(__name__)

Outcome = dict[str, float] | Exception
"""A run's metrics, or what ended it."""


class Session:
    """Fits a method, tests it at its last and at its best epoch, and writes what came out.

    Args:
        folders: each run's.
        loggers: each run's.
        checkpoint: the file from which all runs can go on.
        every: optimizer steps between two checkpoints.
        seconds: at least so many between two checkpoints.
        forks: further files, by the number of optimizer steps after which the state is saved there.
    """

    def __init__(
        self, method: Method, data: RunsDataModule, folders: Sequence[RunFolder], loggers: Sequence[Logger],
        checkpoint: Path, every: int, seconds: float = 0.0, forks: Mapping[int, Path] | None = None,
    ):  # fmt: skip
        self.method, self.data, self.folders, self.loggers = method, method.reads(data), folders, loggers
        self.throughput, self.flops = Throughput(), FlopsCount()
        saving = LastCheckpoint(checkpoint, every, seconds, forks)
        self.callbacks: list[L.Callback] = [self.throughput, self.flops, Progress(), saving]

    def fit(self, trainer: L.Trainer, checkpoint: Path | None) -> None:
        """Trains to the end, from the checkpoint if there is one; validates where no epoch has ended."""
        self.trainer = trainer
        if self.method.trains:
            trainer.fit(self.method, self.data, ckpt_path=checkpoint, weights_only=True)
        else:
            log.info("nothing is trained: optim, adapter, knots, and what trainer says of training, don't count")
        if self.method.best.validated != trainer.global_step:
            trainer.validate(self.method, self.data, verbose=False)

    def finish(self) -> list[Outcome]:
        """Tests, saves what was learned and the predictions, and writes each run's `metrics.json`.

        Returns:
            Each run's metrics, flat: `<split>/<metric>` at the best epoch, `<split>_last/…` at the last; or what ended
            it.
        """
        best = self.method.best
        figures = self.method.figures()  # not the best epoch's
        self.method.conclude()
        last = self._test()
        each, end = len(self.method.names), self.trainer.global_step
        at_end = [all(b.step == end for b in best.best[i * each : (i + 1) * each]) for i in range(len(self.folders))]
        self.method.settled = {run for run, last_is_best in enumerate(at_end) if last_is_best}
        for run, folder in enumerate(self.folders):
            if not at_end[run] and run not in self.method.failures:
                self.method.save_last(run, folder)
        best.restore(self.method)
        at_best = last if all(at_end) else self._test()
        self.method.model.eval()  # after a test Lightning brings training mode back, and with it dropout
        outcomes: list[Outcome] = []
        for run, folder in enumerate(self.folders):
            if run in self.method.failures:
                outcomes.append(self.method.failures[run])
                continue
            metrics = {f"test/{k}": v for k, v in at_best[run].items()} | {
                f"test_last/{k}": v for k, v in last[run].items()
            }
            metrics |= self._save(run, folder) | self._costs(run) | figures | dict(self.method.base.facts)
            metrics |= told(token_counts(self.data.runs[run]))
            self.loggers[run].log_metrics(metrics, step=self.trainer.global_step)
            if writes():
                folder.write_metrics(metrics)
            outcomes.append(metrics)
        return outcomes

    def _test(self) -> list[dict[str, float]]:
        """Each run's."""
        self.trainer.test(self.method, self.data, verbose=False)
        predictions = self.method.predictions["test"]
        return [summarise(of_run, run.tasks) for of_run, run in zip(predictions, self.data.runs, strict=True)]

    def _save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes a run's predictions and what it has learned; returns the validation metrics at the best epochs too."""
        if writes():
            folder.write_predictions(prediction.row() for prediction in self.method.predictions["test"][run])
        names, metrics = self.method.names, self.method.save(run, folder)
        if size := folder.adapter_bytes:
            metrics["adapter/bytes"] = size
        metrics |= self.method.report(run, folder.path)
        for i, name in enumerate(names):
            expert, of = run * len(names) + i, "" if len(names) == 1 else f"{name}/"
            moment = self.method.best.best[expert]
            metrics |= {f"val/{of}{k}": v for k, v in moment.summary.items()}
            metrics[f"best/{of}optimizer_step"] = self.method.own_steps([expert], moment.step)
        return metrics

    def _costs(self, run: int) -> dict[str, float]:
        peaks = [peak for peak in gathered(peak_memory(self.method.device)) if peak is not None]
        memory = {"run/peak_memory_bytes": max(peaks)} if peaks else {}
        each = len(self.method.names)
        own = range(run * each, (run + 1) * each)
        counts, bank = self.throughput.counts, self.method.serving.bank
        tokens = counts[own.start : own.stop] + counts[bank:]  # and what none of a run's own adapters was to serve
        flops = self.flops.metrics(run, self.method.names, self.throughput.seconds, bank)
        times = {
            "train/optimizer_steps": self.method.own_steps(own, self.trainer.global_step),
            "train/tokens": sum(tokens),
            "train/seconds": self.throughput.seconds,
            "train/tokens_per_second": self.throughput.tokens / max(self.throughput.seconds, 1e-9),
            "run/seconds": self.throughput.run_seconds(),
            "run/side_by_side": len(self.folders),
        }
        return memory | flops | times
