"""Lightning's Trainer, with an end after so many optimizer steps that a resumed run reaches too."""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L

from lorachains.errors import LorachainsError

warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.13; nothing a user can mend


class StopAfter(L.Callback):
    """Ends the training once `steps` optimizer steps are done."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class Trainer(L.Trainer):
    """Lightning's Trainer, but for `max_steps`.

    With Lightning's own `max_steps` (2.6), a run resumed at an epoch's end counts that epoch twice and, with
    `max_epochs` as well, ends too early.

    Args:
        max_steps: optimizer steps after which training ends, if `max_epochs` doesn't end it before; -1 for no limit.
        kwargs: see `lightning.Trainer`.

    Raises:
        LorachainsError: a value that Lightning would take and that makes no sense, or more than one device.
    """

    def __init__(self, *, max_steps: int = -1, callbacks: list[L.Callback], **kwargs: Any):
        _check(kwargs | {"max_steps": max_steps})
        self._max_optimizer_steps = max_steps
        limit = [StopAfter(max_steps)] if max_steps >= 0 else []
        super().__init__(callbacks=[*callbacks, *limit], **kwargs)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole run; infinite if nothing ends it."""
        steps = super().estimated_stepping_batches
        return min(steps, self._max_optimizer_steps) if self._max_optimizer_steps >= 0 else steps


def _check(settings: dict[str, Any]) -> None:
    for key, least in {"max_epochs": -1, "max_steps": -1, "accumulate_grad_batches": 1}.items():
        value = settings.get(key, least)
        if type(value) is not int or value < least:
            raise LorachainsError(f"trainer.{key} is {value!r}: give a whole number, {least} or more")
    clip = settings.get("gradient_clip_val")
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise LorachainsError(f"trainer.gradient_clip_val is {clip!r}: give a norm above 0, or null for no clipping")
    if settings.get("gradient_clip_algorithm", "norm") != "norm":
        raise LorachainsError(f"trainer.gradient_clip_algorithm is {settings['gradient_clip_algorithm']!r}: only norm")
    devices = settings.get("devices", 1)
    if (
        not (devices in (1, "1", "auto") or (isinstance(devices, Sequence) and len(devices) == 1))
        or settings.get("num_nodes", 1) != 1
    ):
        raise LorachainsError(f"trainer.devices is {devices!r}: a run uses one device")
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if settings.get(key) == 0:
            raise LorachainsError(f"trainer.{key} is 0: each split is needed, give a number above 0")
