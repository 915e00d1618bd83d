"""Has runs made, in a process of its own, so that nothing which ends that process ends the sweep."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lorachains.reproduce.runs import Run
from lorachains.run_folder import write_whole

ATTEMPTS = 2
"""How often a run is tried."""
POLL = 1.0
"""Seconds between two looks at the folders."""


def make(runs: Sequence[Run], root: Path, launcher: str, show: Callable[[], None]) -> None:
    """Makes what isn't finished; a run that fails, or with which the process ends, is tried once more.

    Each pass is a Hydra multirun of all runs, of which the finished ones are skipped: so those that are trained
    together stay together, and go on from their checkpoint. Why a run was given up is in its `failure.txt`.

    Args:
        show: is called every second or so, and when a pass ends.
    """
    attempts: Counter[str] = Counter()
    while any(not run.finished and attempts[run.name] < ATTEMPTS for run in runs):
        asked = [run for run in runs if run.finished or attempts[run.name] < ATTEMPTS]
        left = [run for run in asked if not run.finished]
        before = {run.name: run.begun for run in left}
        for run in left:
            run.folder.failure.unlink(missing_ok=True)
        code = _multirun(asked, root, launcher, show)
        tried = [run for run in left if not run.finished]
        if code < 0:  # by a signal, which is no fault of those whose turn had not come
            tried = [run for run in tried if run.begun != before[run.name]] or tried
        for run in tried:
            attempts[run.name] += 1
            if run.failure is None:
                run.folder.path.mkdir(parents=True, exist_ok=True)
                write_whole(run.folder.failure, f"the process {_ended(code)}: see {root / 'multirun.log'}\n")
        show()


def _multirun(runs: Sequence[Run], root: Path, launcher: str, show: Callable[[], None]) -> int:
    """The exit status of the process; negative for a signal."""
    jobs = root / ".jobs.json"
    write_whole(jobs, json.dumps([run.overrides for run in runs], indent=0))
    command = [
        sys.executable, "-m", "lorachains.reproduce.worker", "-m", "resume=true", "hydra/sweeper=listed",
        f"hydra.sweeper.file='{jobs.absolute()}'", f"hydra/launcher={launcher}", f"hydra.sweep.dir='{root}'",
    ]  # fmt: skip
    with (root / "multirun.log").open("ab") as log:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                try:
                    return worker.wait(POLL)
                except subprocess.TimeoutExpired:
                    show()
        finally:  # after Ctrl-C: its checkpoints are what the next pass goes on from
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
