"""Has runs made, in processes of their own, so that nothing which ends such a process ends the sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorachains.composing import quoted
from lorachains.reproduce.runs import Run
from lorachains.run_folder import write_whole

ATTEMPTS = 2
"""How often a run is tried."""
POLL = 1.0
"""Seconds between two looks at the folders."""

Lot = Sequence[Run]
"""Runs that a process makes."""


@dataclass(frozen=True)
class Launch:
    """How runs are made.

    Attributes:
        root: the folder of their folders.
        launcher: Hydra's, of each multirun.
        workers: processes at the same time, of which each has one of the GPUs, in turn.
        group_size: `hydra.launcher.group_size` of the replicas launcher.
    """

    root: Path
    launcher: str = "replicas"
    workers: int = 1
    group_size: int | None = None

    def command(self, jobs: Path) -> list[str]:
        """The multirun of the jobs that a file lists."""
        size = [] if self.group_size is None else [f"hydra.launcher.group_size={self.group_size}"]
        return [
            sys.executable, "-m", "lorachains.reproduce.worker", "-m", "resume=true", "hydra/sweeper=listed",
            f"hydra.sweeper.file={quoted(str(jobs.absolute()))}", f"hydra/launcher={self.launcher}",
            f"hydra.sweep.dir={quoted(str(self.root))}", *size,
        ]  # fmt: skip

    def environment(self, worker: int) -> dict[str, str]:
        """That of one worker's processes: several share the machine."""
        own = dict(os.environ)
        if self.workers > 1:
            import torch  # not at the top: where nothing is missing, nothing needs it

            for threads in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
                own.setdefault(threads, str(max(1, (os.cpu_count() or 1) // self.workers)))
            visible = own.get("CUDA_VISIBLE_DEVICES", "").split(",")
            if gpus := visible if visible != [""] else list(map(str, range(torch.cuda.device_count()))):
                own["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
        return own

    def log(self, worker: int) -> Path:
        """Where all that one worker's processes print is kept."""
        return self.root / ("multirun.log" if self.workers == 1 else f"multirun-{worker}.log")


def make(runs: Sequence[Run], launch: Launch, show: Callable[[], None]) -> None:
    """Makes what isn't finished; a run that fails, or with which the process ends, is tried once more.

    Several workers take lots in turn: what can be trained together stays together, and a run waits for those that it
    begins with. Why a run was given up is in its `failure.txt`.

    Args:
        show: is called every second or so, and at the end.
    """
    waiting: list[Lot] = _lots(runs) if launch.workers > 1 else [runs]
    under_way = dict[int, tuple[Lot, Generator[None]]]()
    try:
        while waiting or under_way:
            for worker in set(range(launch.workers)) - under_way.keys():
                ahead = {run.name for lot in (*waiting, *(lot for lot, _ in under_way.values())) for run in lot}
                if lot := next((lot for lot in waiting if not _awaits(lot, ahead)), None):
                    waiting.remove(lot)
                    under_way[worker] = lot, _passes(lot, launch, worker)
            for worker, (_, passes) in list(under_way.items()):
                if next(passes, passes) is passes:
                    del under_way[worker]
            show()
            time.sleep(POLL if under_way else 0)
    finally:  # after Ctrl-C: their checkpoints are what the next time goes on from
        for _, passes in under_way.values():
            passes.close()


def _lots(runs: Sequence[Run]) -> list[Lot]:
    """The runs by what is trained together, in the order of the first of each."""
    lots: dict[str, list[Run]] = {}
    for run in runs:
        lots.setdefault(run.lot, []).append(run)
    return list(lots.values())


def _awaits(lot: Lot, ahead: Collection[str]) -> bool:
    """Whether runs of the lot begin with others that are still to be made."""
    own = {run.name for run in lot}
    return any(first.name in ahead and first.name not in own for run in lot for first in run.before)


def _passes(runs: Lot, launch: Launch, worker: int) -> Generator[None]:
    """Makes the runs; yields while there is nothing to do but wait.

    Each pass is a Hydra multirun of all runs, of which the finished ones are skipped: so those that are trained
    together stay together, and go on from their checkpoint.
    """
    attempts: Counter[str] = Counter()
    while any(not run.finished and attempts[run.name] < ATTEMPTS for run in runs):
        asked = [run for run in runs if run.finished or attempts[run.name] < ATTEMPTS]
        left = [run for run in asked if not run.finished]
        before = {run.name: run.begun for run in left}
        for run in left:
            run.folder.failure.unlink(missing_ok=True)
        code = yield from _multirun(asked, launch, worker)
        tried = [run for run in left if not run.finished]
        if code < 0:  # by a signal, which is no fault of those whose turn had not come
            tried = [run for run in tried if run.begun != before[run.name]] or tried
        for run in tried:
            attempts[run.name] += 1
            if run.failure is None:
                run.folder.path.mkdir(parents=True, exist_ok=True)
                write_whole(run.folder.failure, f"the process {_ended(code)}: see {launch.log(worker)}\n")


def _multirun(runs: Lot, launch: Launch, worker: int) -> Generator[None, None, int]:
    """Returns the exit status of the process; negative for a signal."""
    jobs = launch.root / f".jobs-{worker}.json"
    write_whole(jobs, json.dumps([run.overrides for run in runs], indent=0))
    with launch.log(worker).open("ab") as log:
        process = subprocess.Popen(
            launch.command(jobs), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            env=launch.environment(worker),
        )  # fmt: skip
        try:
            while (status := process.poll()) is None:
                yield
            return status
        finally:  # its end of the pipe tells it to end (`worker`)
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
