"""What is logged of a training: vectors over the adapters, handed to each run's own logger.

The numbers stay on the device until they are due, and travel to the host beside the steps that follow: asking for one
at each step would make the GPU wait.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorachains.methods.late import Sent

if TYPE_CHECKING:
    from lorachains.methods.method import Method


class Journal:
    """Every `trainer.log_every_n_steps` optimizer steps, what was noted of that step goes to the loggers.

    An adapter that had no rows in the step has nothing to be logged.

    Args:
        method: whose steps are noted; run r logs to `trainer.loggers[r]`.

    Attributes:
        history: all that was logged so far: run, metrics, optimizer step.
        shown: the latest numbers by name, for a progress bar; means over the adapters.
    """

    def __init__(self, method: "Method"):
        self.method = method
        self.shown: dict[str, float] = {}
        self.history: list[tuple[int, dict[str, float], int]] = []
        self._steps = 0
        self._noted: dict[str, Callable[[], Tensor]] = {}
        self._waiting: tuple[int, list[str], Sent] | None = None

    def begin(self) -> None:
        """To be called when training begins, or goes on: an optimizer step done before is not logged again."""
        self._steps = self.method.trainer.global_step

    def note(self, name: str, rows: Callable[[], Tensor]) -> None:
        """Notes a vector over the adapters; `rows` is called if the step is logged."""
        self._noted[name] = rows

    def close_step(self) -> None:
        """To be called at a batch's end, when its optimizer step, if there was one, is counted."""
        trainer = self.method.trainer
        made, self._steps = trainer.global_step != self._steps, trainer.global_step
        if made and self._steps % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.write()
            self._send(self._steps)

    def write(self) -> None:
        """Logs what is on its way to the host."""
        if self._waiting is None:
            return
        step, names, sent = self._waiting
        self._waiting = None
        adapters, rows_of = self.method.names, dict(zip(names, sent.tolist(), strict=True))
        there = [expert for expert, present in enumerate(self.method.present(step)) if present]
        for name, rows in rows_of.items():
            self.shown[name] = sum(rows[expert] for expert in there) / len(there)
        for run in range(len(self.method.seeds)):
            own = {a: e for e, a in enumerate(adapters, run * len(adapters)) if e in there}
            of = {adapter: f"/{adapter}" if len(adapters) > 1 else "" for adapter in own}
            metrics = {f"{name}{of[a]}": rows[e] for name, rows in rows_of.items() for a, e in own.items()}
            if metrics:
                self._log(run, metrics, step)

    def log(self, run: int, metrics: dict[str, float]) -> None:
        """Logs metrics of one run at the present optimizer step."""
        self.write()
        self._log(run, metrics, self.method.trainer.global_step)

    def show(self, runs: Sequence[dict[str, float]]) -> None:
        """Shows the means over the runs in the progress bar, and gives them to other callbacks, as Lightning does."""
        for name in runs[0]:
            self.shown[name] = sum(metrics[name] for metrics in runs) / len(runs)
            self.method.log(name, self.shown[name], logger=False)

    def log_again(self, history: Sequence[tuple[int, dict[str, float], int]]) -> None:
        """Gives the loggers of this process what an earlier one, or another run, has logged up to here."""
        for run, metrics, step in history:
            self._log(run, metrics, step)

    def _log(self, run: int, metrics: dict[str, float], step: int) -> None:
        if run in self.method.failures:
            return
        self.history.append((run, metrics, step))
        if run < len(self.method.trainer.loggers):
            self.method.trainer.loggers[run].log_metrics(metrics, step=step)

    def _send(self, step: int) -> None:
        names = list(self._noted)
        self._waiting = step, names, Sent(torch.stack([self._noted[name]().double() for name in names]))
