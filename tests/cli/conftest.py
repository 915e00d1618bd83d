"""`python -m lorachains.train …`, in this process: a new one takes seconds to import everything."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SMALL = [
    "model=tiny", "data.train_size=8", "data.val_size=2", "data.test_size=2", "data.max_new_tokens=2",
    "data.batch_size=4", "trainer.max_epochs=1",
]  # fmt: skip
"""Two optimizer steps of a random model."""


@dataclass(frozen=True)
class Done:
    """What the command left.

    Attributes:
        code: the exit status.
        err: the lines on stderr that are no progress or library chatter: those that begin with "error".
    """

    code: int
    out: str
    err: str


Call = Callable[..., Done]
Train = Callable[..., Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs an entry point's `main` with the arguments given."""

    def called(main: Callable[[], object], *arguments: str) -> Done:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *capfd.readouterr())

    return called


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, call: Call, tmp_path: Path) -> Iterator[Train]:
    """Runs the command with `SMALL` and the overrides given, in an empty folder."""
    from lorachains.train import main

    monkeypatch.chdir(tmp_path)
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level

    def trained(*overrides: str) -> Done:
        multirun = ["-m"] if "-m" in overrides else []  # which has to come first
        return call(main, *multirun, *SMALL, *(o for o in overrides if o != "-m"))

    yield trained
    root.handlers, root.level = handlers, level
