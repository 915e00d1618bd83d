"""Loggers, opened with a run and always closed with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger


def wandb_logger(save_dir: str, project: str, group: str, tags: list[str], **kwargs: Any) -> WandbLogger:
    """A W&B run named after the run folder: as WANDB_MODE says, else online if the user is logged in, else offline."""
    import wandb

    # Not Lightning's `offline`: it sets WANDB_MODE, which wandb has read by then, and the next job would find it set.
    mode = os.environ.get("WANDB_MODE") or (None if wandb.login(prompt=False) else "offline")
    return WandbLogger(
        name=Path(save_dir).name, save_dir=save_dir, project=project, group=group, tags=tags, mode=mode,
        reinit="create_new", **kwargs,  # runs side by side are open at the same time
    )  # fmt: skip


@contextmanager
def finishing(logger: Logger, settings: dict[str, Any]) -> Iterator[Logger]:
    """Logs the settings at the start, and ends the logger's run whatever happens: the next job needs its own."""
    status = "failed"
    try:
        logger.log_hyperparams(settings)
        yield logger
        status = "success"
    finally:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=0 if status == "success" else 1)
