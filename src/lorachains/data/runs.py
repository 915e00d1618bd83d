"""The data of several runs that are trained side by side, and the loaders that it has in common with one run's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Bool
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lorachains.batch import TokenBatch
from lorachains.data.loaders import Loaders, Numbers
from lorachains.data.streams import ALL, Share, TrainLoader
from lorachains.data.tokens import EvalBatch, Serving

if TYPE_CHECKING:
    from lorachains.data.module import TaskDataModule


class Served(LightningDataModule):
    """The loaders of the data of one or several runs."""

    runs: "Sequence[TaskDataModule]"

    def serve(self, serving: Serving, by_length: bool, share: Share = ALL, accumulate: int = 1) -> None:
        """Says, before the first loader is asked for, which adapter serves which row.

        Args:
            by_length: whether rows of similar length should share a batch.
            share: this process's, if several train the runs together.
            accumulate: training batches of an optimizer step.
        """
        self._loaders = Loaders(self.runs, serving, by_length, share, accumulate)

    def number(self, numbers: Numbers) -> None:
        """Says by which numbers training batches tell their rows."""
        self._loaders.numbers = numbers

    @property
    def stop(self) -> str | None:
        """What ends a free answer of every task; `None` where the tasks differ in it."""
        stops = {task.stop for run in self.runs for task in run.tasks}
        return stops.pop() if len(stops) == 1 else None

    def largest(self, epochs: int) -> tuple[TokenBatch, EvalBatch]:
        """See `Loaders.largest`."""
        return self._loaders.largest(epochs)

    def even(self) -> bool:
        """See `Loaders.even`."""
        return self._loaders.even()

    def presence(self, steps: int, batches: int) -> Bool[Tensor, "steps adapters"]:
        """See `Loaders.presence`."""
        return self._loaders.presence(steps, batches)

    def train_dataloader(self) -> TrainLoader:
        """Each run's next batch, where it is its turn (see `turns`), each row once an epoch; resumable."""
        return self._loaders.train()

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        """Evaluation batches of the rows that training leaves out, for all runs."""
        return self._loaders.evaluation("val")

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        """Evaluation batches of the test rows, for all runs."""
        return self._loaders.evaluation("test")


class RunsDataModule(Served):
    """The data of several runs that are trained side by side.

    Args:
        runs: one for each run, with its own order; runs with the same rows share them (`TaskDataModule.in_order`).
    """

    def __init__(self, runs: "Sequence[TaskDataModule]") -> None:
        super().__init__()
        self.runs = list(runs)
        self.serve(Serving(len(self.runs)), by_length=False)

    def setup(self, stage: str | None = None) -> None:
        """See `TaskDataModule.setup`."""
        for run in self.runs:
            run.setup(stage)
