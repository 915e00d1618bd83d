"""Run folders as training leaves them, without training."""

from collections.abc import Sequence
from pathlib import Path

from lorachains.reproduce.runs import Run
from lorachains.run_folder import RunFolder


def run(root: Path, name: str, lot: str = "", before: Sequence[Run] = ()) -> Run:
    """A run that hasn't been begun."""
    return Run((f"name={name}",), RunFolder(root / name), before, lot)


def begin(run: Run) -> None:
    """As `train_jobs` does."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    run.folder.config.touch()
    with run.folder.code.open("a") as lines:
        lines.write("{}\n")


def finish(run: Run) -> None:
    """As a session does."""
    begin(run)
    run.folder.write_metrics({"test/accuracy": 0.5})


def fail(run: Run, reason: str) -> None:
    """As the sweeper does."""
    begin(run)
    run.folder.failure.write_text(reason + "\n")
