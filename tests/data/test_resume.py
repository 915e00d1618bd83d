"""A run that goes on from a checkpoint sees exactly the batches that the uninterrupted run sees."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.data.tokens import EvalBatch
from lorachains.models import byte_tokenizer

from .stub import stub_module

_EPOCHS = 3
_BATCHES = 7  # 27 rows, 4 a batch

Seen = list[tuple[int, list[int]]]


class Recorder(LightningModule):
    """Notes each batch that it is given, and in each checkpoint how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.seen_before = 0
        self.validated = 0

    def training_step(self, batch: TokenBatch) -> Tensor:
        self.seen.append((self.current_epoch, batch.input_ids.tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: EvalBatch) -> None:
        self.validated += len(batch.rows)
        self.log("val/loss", 0.0, batch_size=len(batch.rows))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = self.seen_before + len(self.seen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen_before = checkpoint["seen"]


def _fit(
    callbacks: list[Callback], ckpt_path: Path | None = None, recorder: Recorder | None = None, **trainer: Any
) -> Recorder:
    recorder = recorder or Recorder()
    Trainer(
        **{"max_epochs": _EPOCHS, "num_sanity_val_steps": 0, **trainer},
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(recorder, datamodule=stub_module(byte_tokenizer()), ckpt_path=ckpt_path, weights_only=False)
    return recorder


def _keep_all(folder: Path, **when: Any) -> list[Callback]:
    return [ModelCheckpoint(folder, filename="{epoch} {step}", save_top_k=-1, **when)]


def _seen_at(path: Path) -> int:
    return int(torch.load(path, weights_only=False)["seen"])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_resuming_after_any_optimizer_step(tmp_path: Path, accumulate: int) -> None:
    whole = _fit(_keep_all(tmp_path, every_n_train_steps=1), accumulate_grad_batches=accumulate).seen
    assert [epoch for epoch, _ in whole] == [epoch for epoch in range(_EPOCHS) for _ in range(_BATCHES)]
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=_seen_at)
    per_epoch = -(-_BATCHES // accumulate)
    assert len(checkpoints) == _EPOCHS * per_epoch
    assert {_seen_at(path) for path in checkpoints} >= {_BATCHES, 2 * _BATCHES, 3 * _BATCHES}  # the ends of the epochs
    for path in checkpoints:
        resumed = _fit([], path, accumulate_grad_batches=accumulate)
        assert resumed.seen == whole[_seen_at(path) :]


@pytest.mark.parametrize("at_train_end", [True, False], ids=["train epoch end", "validation end"])
def test_resuming_at_the_end_of_an_epoch(tmp_path: Path, at_train_end: bool) -> None:
    whole = _fit(_keep_all(tmp_path, save_on_train_epoch_end=at_train_end))
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert [_seen_at(path) for path in paths] == [_BATCHES, 2 * _BATCHES, 3 * _BATCHES]
    for path in paths:
        resumed = _fit([], path)
        assert resumed.seen == whole.seen[_seen_at(path) :]


class SaveAndStop(Callback):
    """Saves after each optimizer step, at an epoch's last one only when the epoch is over, and dies before a batch.

    A checkpoint between the last batch and the end of its epoch resumes rightly once, but not twice: Lightning then
    counts the next epoch as not begun.
    """

    def __init__(self, path: Path, stop_before: int | None) -> None:
        self.path = path
        self.stop_before = stop_before

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.stop_before:
            raise Killed

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class Killed(Exception):
    pass


@pytest.mark.parametrize("limit", [{}, {"max_epochs": -1, "max_steps": _EPOCHS * _BATCHES}], ids=["epochs", "steps"])
@pytest.mark.parametrize("stops", [(2, 4), (5, 7), (7, 9), (7, 14), (3, 7, 20), (1, 8, 15)])
def test_resuming_again_and_again(tmp_path: Path, stops: tuple[int, ...], limit: dict[str, Any]) -> None:
    whole = _fit([], **limit).seen
    path = tmp_path / "last.ckpt"
    seen: Seen = []
    for stop in stops:
        recorder = Recorder()
        with pytest.raises(Killed):
            _fit([SaveAndStop(path, stop)], path if seen else None, recorder, **limit)
        seen += recorder.seen
        assert seen == whole[:stop]
    assert seen + _fit([SaveAndStop(path, None)], path, **limit).seen == whole


def test_a_sanity_check_and_mixed_precision_change_nothing() -> None:
    whole = _fit([])
    mixed = _fit([], precision="bf16-mixed", num_sanity_val_steps=2)
    assert mixed.seen == whole.seen
    assert mixed.validated > whole.validated == _EPOCHS * 5
