"""A run that was stopped at any moment and resumed ends as the run that wasn't, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder
from tests.runs import outcome, run

HOOKS = {
    "before a batch": "on_train_batch_start",
    "after a batch": "on_train_batch_end",
    "before validation": "on_validation_start",
    "after validation": "on_validation_end",
    "at an epoch's end": "on_train_epoch_end",
    "after training": "on_train_end",
    "in the test": "on_test_batch_start",
}


class Killed(Exception):
    pass


class Kill(L.Callback):
    """Raises in one hook, when a number of optimizer steps are done."""

    def __init__(self, hook: str, step: int):
        self.step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def stopped_and_resumed(folder: Path, *overrides: str, kills: list[tuple[str, int]], **kwargs: Any) -> Path:
    for i, (moment, step) in enumerate(kills):
        with pytest.raises(Killed):
            run(folder, *overrides, callbacks=[Kill(HOOKS[moment], step)], resume=i > 0, **kwargs)
    run(folder, *overrides, resume=True, **kwargs)
    return folder


COLA = ["method=cola", "knots=at_steps", "knots.steps=[3,7,10]"]
"""Knots within the first epoch, at its end, and within the second; 7 optimizer steps an epoch."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in ("ledger", "merge")}
    for mode, folder in folders.items():
        run(folder, *COLA, f"knots.mode={mode}")
    return folders


MOMENTS = [
    ("before a batch", 0),
    ("before a batch", 1),
    ("before a batch", 3),  # a knot is due
    ("after a batch", 3),
    ("after a batch", 4),  # a knot was tied
    ("after a batch", 7),  # an epoch's last step, not yet validated
    ("before validation", 7),
    ("after validation", 7),
    ("at an epoch's end", 7),
    ("before a batch", 7),  # an epoch's end and a knot
    ("before a batch", 10),
    ("before a batch", 13),
    ("after validation", 21),
    ("after training", 21),
    ("in the test", 21),
]


@pytest.mark.parametrize(
    ("mode", "moment", "step"),
    [("merge", *kill) for kill in MOMENTS] + [("ledger", *kill) for kill in MOMENTS[2::3]],
)
def test_a_stop_at_any_moment(
    mode: str, moment: str, step: int, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    stopped_and_resumed(tmp_path, *COLA, f"knots.mode={mode}", kills=[(moment, step)])
    assert outcome(tmp_path) == outcome(uninterrupted[mode])


@pytest.mark.parametrize(
    "kills",
    [
        [("before a batch", 2), ("before a batch", 4), ("after a batch", 8), ("at an epoch's end", 14)],
        [("before a batch", 7), ("before a batch", 14)],
        [("after validation", 7), ("at an epoch's end", 7), ("before a batch", 7)],
        [("in the test", 21), ("in the test", 21)],
    ],
    ids=str,
)
def test_stops_again_and_again(kills: list[tuple[str, int]], uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    stopped_and_resumed(tmp_path, *COLA, "knots.mode=merge", kills=kills)
    assert outcome(tmp_path) == outcome(uninterrupted["merge"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter.lora_dropout=0.3", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=4"],
        ["trainer.max_steps=18", "trainer.max_epochs=-1"],
        ["trainer.max_steps=18", "optim=sgd", "optim.optimizer.momentum=0.9"],
        ["method=cola", "knots=even", "knots.links=4", "knots.lr=rewarm", "knots.warmup=2", "knots.ranks=[8,4,2,1]"],
    ],
    ids=["dropout and accumulation", "max_steps", "momentum", "rank step-down"],
)
def test_other_runs(overrides: list[str], tmp_path: Path) -> None:
    """`every`: optimizer steps between two checkpoints; what was done since the last is done again."""
    run(tmp_path / "whole", *overrides)
    for every, step in ((1, 5), (4, 7), (4, 13)):
        folder = tmp_path / f"{every} {step}"
        stopped_and_resumed(folder, *overrides, every=every, kills=[("before a batch", step)])
        assert outcome(folder) == outcome(tmp_path / "whole")


def test_a_checkpoint_whose_optimizer_is_laid_out_otherwise(tmp_path: Path) -> None:
    """As older versions saved it: a group of parameters for each adapter."""
    with pytest.raises(Killed):
        run(tmp_path, callbacks=[Kill(HOOKS["after validation"], 7)])
    checkpoint = RunFolder(tmp_path).checkpoint
    saved = torch.load(checkpoint, weights_only=True)
    saved["optimizer_states"][0]["param_groups"] *= 2
    torch.save(saved, checkpoint)
    with pytest.raises(LorachainsError, match=r"an optimizer state for each adapter apart.*overwrite=true"):
        run(tmp_path, resume=True)


def test_ctrl_c(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    """Lightning ends the process; what was saved can be gone on with."""

    class CtrlC(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 9:
                raise KeyboardInterrupt

    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run(tmp_path, *COLA, "knots.mode=ledger", callbacks=[CtrlC()])
    run(tmp_path, *COLA, "knots.mode=ledger", resume=True)
    assert outcome(tmp_path) == outcome(uninterrupted["ledger"])


COMMAND = [
    sys.executable, "-m", "lorachains.train", "method=cola", "model=tiny", "knots=every", "knots.n_steps=25",
    "data.task=syllogism", "data.train_size=64", "data.val_size=8", "data.test_size=8", "data.batch_size=4",
    "trainer.max_epochs=8", "checkpoint_every=5", "checkpoint_seconds=0",
    "optim.lr=5e-3",
]  # fmt: skip


def command(folder: Path, *overrides: str) -> list[str]:
    return [*COMMAND, f"hydra.run.dir={folder}", *overrides]


def test_kill_9_and_the_same_command_with_resume(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(command(tmp_path / "killed"), env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (checkpoint.is_file() and torch.load(checkpoint, weights_only=True)["global_step"] > 30):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    commands = [command(tmp_path / "killed", "resume=true"), command(tmp_path / "whole")]
    both = [subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) for line in commands]
    assert [process.wait() for process in both] == [0, 0]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
