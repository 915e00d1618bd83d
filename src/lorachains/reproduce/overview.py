"""How far a sweep is: done, running, failed, and the time left."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from lorachains.reproduce.runs import Run, Table

STATES = ("done", "running", "failed", "waiting")


class Overview:
    """Kept up to date in a terminal; elsewhere a line whenever runs are done or have failed.

    Args:
        tables: what is made.
        minutes: expected for all runs.
        console: where it is shown.
    """

    def __init__(self, tables: Sequence[Table], minutes: float, console: Console):
        self.tables, self.minutes, self.console = tables, minutes, console
        self.runs = list({run.name: run for table in tables for run in table.runs}.values())
        self._before = {run.name: run.begun for run in self.runs}
        self._done, self._start = self.count(self.runs)["done"], time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        self.show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show()
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Looks at the folders, and shows what is there."""
        if self._live:
            self._live.update(self._grid(), refresh=True)
            return
        count = self.count(self.runs)
        told = ", ".join(f"{count[state]} {state}" for state in ("done", "failed"))
        if told != self._told:
            self._told = told
            self.console.print(f"{time.strftime('%H:%M:%S')} {told} of {len(self.runs)} runs; {self.left(count)}")

    def count(self, runs: Sequence[Run]) -> dict[str, int]:
        """How many runs are in each of `STATES`."""
        states = [self._state(run) for run in runs]
        return {state: states.count(state) for state in STATES}

    def left(self, count: dict[str, int]) -> str:
        """The time that the runs still to be made will take: at the pace so far, or by what is expected."""
        to_do, made = count["running"] + count["waiting"], count["done"] - self._done
        if not to_do:
            return "nothing left to do"
        each = (time.monotonic() - self._start) / made if made else 60 * self.minutes / len(self.runs)
        return f"about {_span(each * to_do)} left"

    def _state(self, run: Run) -> str:
        if run.finished:
            return "done"
        if run.failure is not None:
            return "failed"
        return "running" if run.begun > self._before.get(run.name, 0) else "waiting"

    def _grid(self) -> Grid:
        count = self.count(self.runs)
        grid = Grid("table", *STATES, caption=self.left(count), caption_justify="left")
        for table in self.tables:
            grid.add_row(table.sweep.name, *(str(number) for number in self.count(table.runs).values()))
        if len(self.tables) > 1:
            grid.add_section()
            grid.add_row("all, each run once", *(str(number) for number in count.values()))
        return grid


def _span(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"
