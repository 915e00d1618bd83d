"""The runs of tables and figures: their folders, and how far they are."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lorachains.cli import run_name, settings_of
from lorachains.composing import Compositions, quoted
from lorachains.errors import LorachainsError
from lorachains.grouping import lot
from lorachains.reproduce.sweeps import Job, Overrides, Part, Sweep
from lorachains.run_folder import RunFolder, write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A job with the folder that its settings name."""

    overrides: Overrides
    folder: RunFolder
    before: Sequence["Run"] = ()
    """The runs that it begins with."""
    lot: str = ""
    """The same for runs that are trained together (`grouping.lot`)."""

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.folder.metrics.is_file() and self.folder.config.is_file()

    def set_damaged_aside(self) -> None:
        """Renames a `metrics.json` that can't be read, so that the run is made again."""
        if not self.finished:
            return
        try:
            self.folder.read_metrics()
        except LorachainsError:
            aside = self.folder.metrics.with_suffix(".json.damaged")
            self.folder.metrics.replace(aside)
            log.warning("%s can't be read: it is %s now, and the run is made again", self.folder.metrics, aside.name)

    @property
    def begun(self) -> int:
        """How often its training was begun or gone on with."""
        return self.folder.code.read_text(encoding="utf-8").count("\n") if self.folder.code.is_file() else 0

    @property
    def failure(self) -> str | None:
        """Why it couldn't be made."""
        return self.folder.failure.read_text(encoding="utf-8").strip() if self.folder.failure.is_file() else None


@dataclass(frozen=True)
class Cell:
    """The runs of a row and a column."""

    row: Part
    column: Part
    metric: str | None
    runs: Sequence[Run]


@dataclass(frozen=True)
class Table:
    """A sweep with its runs."""

    sweep: Sweep
    cells: Sequence[Cell]

    @property
    def runs(self) -> list[Run]:
        """All runs, each once, and after those that it begins with."""
        own = (run for cell in self.cells for run in cell.runs)
        return list({run.name: run for last in own for run in (*last.before, last)}.values())

    def write(self, root: Path, command: str) -> None:
        """Writes `<name>.json` beside the runs: which of them make which cell.

        Args:
            command: by which they are made.
        """
        sweep = self.sweep
        cells = [
            {"row": c.row.label, "column": c.column.label, "metric": c.metric, "runs": [run.name for run in c.runs]}
            for c in self.cells
        ]
        told: dict[str, Any] = {
            "paper": sweep.paper, "table": sweep.table, "title": sweep.title, "size": sweep.size,
            "command": command, "cells": cells,
        }  # fmt: skip
        write_whole(root / f"{sweep.name}.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")


class Composer:
    """Finds each job's folder, by composing its config; one that several tables have is composed once.

    To be used where Hydra is initialised with `conf/`.

    Args:
        root: the folder of all runs.
        extra: overrides of all jobs, which come last.
    """

    def __init__(self, root: Path, extra: Sequence[str] = ()):
        self.root, self.extra = root, tuple(extra)
        self._known: dict[frozenset[str], Run] = {}
        self._compositions = Compositions(partial(compose, "train", return_hydra_config=True))

    def table(self, sweep: Sweep) -> Table:
        """The sweep's runs. Raises a LorachainsError if a job can't be composed."""
        return Table(sweep, list(self._cells(sweep)))

    def _cells(self, sweep: Sweep) -> Iterator[Cell]:
        for row in sweep.rows:
            for column in sweep.columns:
                try:
                    runs = [self._run(job) for job in sweep.jobs(row, column)]
                except (HydraException, OmegaConfBaseException) as error:
                    why = next(iter(str(error).splitlines()), type(error).__name__)
                    raise LorachainsError(f"{sweep.name}, {row.label}, {column.label}: {why}") from error
                yield Cell(row, column, sweep.shown(row, column), runs)

    def _run(self, job: Job) -> Run:
        """The job's run; before it, those that it begins with."""
        before = {setting: self._run(Job(overrides)) for setting, overrides in job.start.items()}
        begin = [f"{setting}={quoted(str(run.folder.path))}" for setting, run in before.items()]
        overrides = (*job.overrides, *begin, *self.extra)
        key = frozenset(overrides)
        if key not in self._known:
            cfg = self._compositions.config(overrides)
            folder = RunFolder(self.root / run_name(cfg))
            self._known[key] = Run(overrides, folder, tuple(before.values()), lot(settings_of(cfg)))
        return self._known[key]
