"""The frame of every method: it evaluates runs side by side, and remembers their best epochs. `Hooks` has what differs.

What belongs to one adapter is a row of a vector over the bank: its loss, learning rate, gradient norm, validation score
and best epoch. Several runs are evaluated together if they share a base; one run is a group of one. A method without
adapters is one row.
"""

import logging
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lorachains.callbacks.best import BestEpoch
from lorachains.data.runs import RunsDataModule
from lorachains.data.streams import Share
from lorachains.data.tokens import EvalBatch, Serving
from lorachains.errors import LorachainsError
from lorachains.evaluation import Prediction, predict, summarise
from lorachains.methods.hooks import Hooks
from lorachains.methods.journal import Journal
from lorachains.methods.passes import Passes
from lorachains.models import LanguageModel
from lorachains.packing import packs
from lorachains.parallel import interleaved

NEED_LABELS = "have no label, by which alone an adapter of this method gets rows: set data.unlabelled=false"

log = logging.getLogger(__name__)


class Method(Hooks):
    """Evaluates a base model, and what a subclass adds to it or changes in it.

    Args:
        base: the model and its tokenizer.
        seed: of each run.
        names: the adapters of each run; with several, adapter i serves the rows of task i.
        select: the best epoch's criterion: the validation metric ("metric"), the validation loss ("loss"), or
            simply the last epoch ("last").

    Attributes:
        predictions: split to the last predictions of each run.
        failures: run to the error that ended its training; the others go on.
        settled: the runs whose test results are logged already.
    """

    def __init__(
        self, base: LanguageModel, seed: int | Sequence[int], names: Sequence[str] = ("adapter",),
        select: str = "metric",
    ):  # fmt: skip
        super().__init__()
        self.base, self.model, self.names = base, base.model, list(names)
        self.seeds = [seed] if isinstance(seed, int) else list(seed)
        for given in self.seeds:
            if type(given) is not int or given < 0:
                raise LorachainsError(f"method.seed is {given!r}: give a whole number, 0 or more")
        self.serving = Serving(len(self.seeds), len(self.names))
        self.best = BestEpoch(select)
        self.predictions: dict[str, list[list[Prediction]]] = {}
        self.failures: dict[int, LorachainsError] = {}
        self.settled: set[int] = set()
        self.journal = Journal(self)
        self.passes = Passes(self)

    # -- Lightning's hooks ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        share = Share(self.trainer.global_rank, self.trainer.world_size)
        self.data.serve(self.serving, not packs(self.model), share, self.trainer.accumulate_grad_batches)
        for run in self.data.runs:
            run.check_fits(getattr(self.model.config, "max_position_embeddings", None))
            if run.unlabelled and self.serving.experts > 1 and not self.takes_unlabelled:
                raise LorachainsError(f"{run.unlabelled} training rows {NEED_LABELS}")

    def cpu(self) -> "Method":
        """Does nothing: Lightning would move the model away after each fit or test, and from under its graphs."""
        return self

    def configure_callbacks(self) -> list[L.Callback]:
        return [self.best]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.passes.place(batch, device)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> RunsDataModule:
        """The data module at hand."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def adapter_summaries(self, split: str) -> list[dict[str, float]]:
        """Each adapter's metrics over the split's last predictions, as `summarise` names them."""
        summaries = []
        for run, predictions in zip(self.data.runs, self.predictions[split], strict=True):
            if self.serving.experts == 1:
                summaries.append(summarise(predictions, run.tasks))
            else:
                summaries += [summarise([p for p in predictions if p.task == t.name], [t]) for t in run.tasks]
        return summaries

    def on_validation_epoch_start(self) -> None:
        self._answers: list[tuple[EvalBatch, Tensor, list[str]]] = []

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """In the precision of the weights, also where training is mixed: as what is saved answers later.

        Nor have keys and values of several precisions room in one static cache.
        """
        with torch.autocast(self.device.type, enabled=False):
            self._answers.append((batch, *self.answers(batch)))

    test_step = validation_step

    def _collect(self, split: str) -> None:
        """Takes the answers from the device, not before all are on their way, and all devices' in the order of one."""
        tasks = [run.tasks for run in self.data.runs]
        answered = [
            list(zip(batch.runs, predict(batch, losses.tolist(), texts, tasks), strict=True))
            for batch, losses, texts in self._answers
        ]
        self._answers = []
        self.predictions[split] = [[] for _ in self.seeds]
        for run, answer in chain.from_iterable(interleaved(answered)):
            self.predictions[split][run].append(answer)

    def on_validation_epoch_end(self) -> None:
        self._collect("val")
        self._log_summaries("val")
        summaries, each = self.adapter_summaries("val"), self.serving.experts
        for run in range(len(self.seeds)):
            finite = any(math.isfinite(s["loss"]) for s in summaries[run * each : (run + 1) * each])
            if not finite:
                step = self.trainer.global_step
                self.stop_run(
                    run, LorachainsError(f"val/loss is not finite after optimizer step {step}: {self.remedy(run)}")
                )

    def stop_run(self, run: int, error: LorachainsError) -> None:
        """Stops one run; the others go on. Raises the error if there are no others."""
        if run not in self.failures:
            self.failures[run] = error
            if len(self.failures) == len(self.seeds):
                raise self.failures[0]
            log.error("run %d of %d is stopped: %s", run + 1, len(self.seeds), error)

    def on_test_epoch_end(self) -> None:
        self._collect("test")
        self._log_summaries("test")

    def _log_summaries(self, split: str) -> None:
        summaries = [
            {f"{split}/{key}": value for key, value in summarise(predictions, run.tasks).items()}
            for predictions, run in zip(self.predictions[split], self.data.runs, strict=True)
        ]
        for run, summary in enumerate(summaries):
            if split != "test" or run not in self.settled:
                self.journal.log(run, summary)
        if all(summary.keys() == summaries[0].keys() for summary in summaries):
            self.journal.show(summaries)

    # -- checkpoints: what was logged ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.journal.close_step()  # saved at a batch's end, before it was closed
        self.journal.write()
        checkpoint["history"] = self.journal.history
        checkpoint["failures"] = {run: str(error) for run, error in self.failures.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.journal.log_again(checkpoint["history"])
        self.failures = {run: LorachainsError(text) for run, text in checkpoint["failures"].items()}
