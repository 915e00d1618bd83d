"""The checkpoint is there when it should be, and whole at any moment."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from lorachains.callbacks import checkpoint
from lorachains.callbacks.checkpoint import LastCheckpoint
from lorachains.run_folder import resumable
from tests.runs import fit, make_method


class Saves(LastCheckpoint):
    """Notes at which optimizer step it saved, in which epoch."""

    def __init__(self, path: Path, every: int):
        super().__init__(path, every)
        self.steps: list[int] = []

    def _save(self, trainer: L.Trainer) -> None:
        self.steps.append(trainer.global_step)
        super()._save(trainer)


@pytest.mark.parametrize(
    ("every", "accumulate", "steps"),
    [
        (100, 1, [7, 14, 21]),
        (3, 1, [3, 6, 7, 10, 13, 14, 17, 20, 21]),
        (7, 1, [7, 14, 21]),
        (1, 3, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_saved_every_so_many_optimizer_steps_and_after_each_epoch(
    every: int, accumulate: int, steps: list[int], tmp_path: Path
) -> None:
    saves = Saves(tmp_path / "deep" / "last.ckpt", every)
    fit(make_method(), f"trainer.accumulate_grad_batches={accumulate}", callbacks=[saves])
    assert saves.steps == steps
    assert resumable(saves.path) == saves.path
    assert torch.load(saves.path, weights_only=True)["global_step"] == steps[-1]


def test_no_two_checkpoints_within_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says how many optimizer steps are done, also at the end of an epoch (7, 14, 21)."""

    class Clock(L.Callback):
        now = 0

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.now = trainer.global_step

    clock = Clock()
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    path = tmp_path / "last.ckpt"
    saved: list[int] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if path.is_file():
                saved.append(torch.load(path, weights_only=True)["global_step"])

    fit(make_method(), callbacks=[clock, LastCheckpoint(path, 2, seconds=5), Look()])
    gaps = [later - earlier for earlier, later in pairwise([0, *sorted(set(saved))])]
    assert len(gaps) >= 3
    assert all(5 <= gap <= 5 + 2 for gap in gaps)


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec writes to the system's temporary folder and moves from there, on another disk by copying."""

    class DiskFull(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 1:
                monkeypatch.setattr(shutil, "move", half_copied)

    def half_copied(source: str, target: str) -> None:
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    path = tmp_path / "last.ckpt"
    with pytest.raises(OSError, match="No space left"):
        fit(make_method(), callbacks=[LastCheckpoint(path, 100), DiskFull()])
    monkeypatch.undo()
    assert resumable(path) == path
    assert torch.load(path, weights_only=True)["global_step"] == 7
