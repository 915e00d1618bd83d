"""What a trunk leaves for its branches: runs that are the same but for knots are one run up to the first knot.

The trunk, which ties none (`grouping.trunk`), leaves its state there beside its checkpoint, and a branch goes on from
it.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from lorachains.data.module import TaskDataModule
from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)


def forks(
    trainer: DictConfig, branches: Iterable[DictConfig], data: TaskDataModule, checkpoint: Path
) -> dict[int, Path]:
    """Where a trunk leaves its state for branches, by optimizer step.

    Args:
        trainer: the config of the trainer.
        branches: the configs of the branches' knots.
        checkpoint: the trunk's.
    """
    steps = {_first_knot(trainer, knots, data) for knots in branches}
    return {step: _beside(checkpoint, step) for step in steps if step}


def fork(trainer: DictConfig, knots: DictConfig, data: TaskDataModule, checkpoint: Path) -> Path | None:
    """The state that the trunk has left at a branch's first knot, if there is one.

    Args:
        trainer: the config of the trainer.
        knots: the config of the branch's knots.
        checkpoint: the trunk's.
    """
    step = _first_knot(trainer, knots, data)
    if step is None or not (path := _beside(checkpoint, step)).is_file():
        return None
    log.info("up to its first knot, after optimizer step %d, trained already: goes on from there", step)
    return path


def _first_knot(trainer: DictConfig, knots: DictConfig, data: TaskDataModule) -> int | None:
    """The optimizer steps before the first knot; `None` without one, or if the schedule doesn't fit the run."""
    per_epoch = -(-len(data.batches()) // trainer.accumulate_grad_batches)
    limits = [trainer.max_epochs * per_epoch, trainer.max_steps]
    try:
        return next(iter(instantiate(knots).plan(min(n for n in limits if n > 0), per_epoch)), None)
    except (LorachainsError, ValueError):
        return None


def _beside(checkpoint: Path, step: int) -> Path:
    return checkpoint.with_name(f"fork-{step}.ckpt")
