"""Loggers, opened with a run and always closed with it."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from lorachains.errors import LorachainsError, check_switch
from lorachains.run_folder import RunFolder

CLASSES = 20
"""Tasks with more different answers get no confusion matrix."""


class WandbRunLogger(WandbLogger):
    """Lightning's, which can take over what a run leaves in its folder.

    Args:
        save_dir: the run's folder.
        log_predictions: the test set's predictions become a table, and a confusion matrix where answers are few.
        log_adapter: the adapter becomes an artifact of type "model".
        kwargs: Lightning's and `wandb.init`'s.

    Raises:
        LorachainsError: a switch that is neither true nor false.
    """

    def __init__(self, save_dir: str, log_predictions: bool, log_adapter: bool, **kwargs: Any):
        check_switch("logger.log_predictions", log_predictions)
        check_switch("logger.log_adapter", log_adapter)
        super().__init__(save_dir=save_dir, **kwargs)
        self._folder, self._predictions, self._adapter = RunFolder(Path(save_dir)), log_predictions, log_adapter

    def log_results(self) -> None:
        """Takes over the pictures, and what else is asked for and is there."""
        self._log_pictures()
        if self._predictions and self._folder.predictions.is_file():
            self._log_predictions()
        adapters = self._folder.adapters if self._folder.adapters.is_dir() else self._folder.adapter
        if self._adapter and adapters.is_dir():
            import wandb

            artifact = wandb.Artifact(f"adapter-{self.experiment.id}", type="model")
            artifact.add_dir(str(adapters))
            self.experiment.log_artifact(artifact)

    def _log_pictures(self) -> None:
        import wandb

        if pictures := {f"pictures/{path.stem}": wandb.Image(str(path)) for path in self._folder.pictures}:
            self.experiment.log(pictures)

    def _log_predictions(self) -> None:
        import wandb

        by_task = defaultdict[str, list[dict[str, Any]]](list)
        with self._folder.predictions.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                by_task[row["task"]].append(row)
        for task, rows in by_task.items():
            scores = list(rows[0]["scores"])
            columns = ["source", "prompt", "answer", "prediction", "loss", *scores]
            cells = [[*(row[key] for key in columns[:5]), *(row["scores"][key] for key in scores)] for row in rows]
            shown: dict[str, Any] = {f"predictions/{task}": wandb.Table(columns=columns, data=cells)}
            names = sorted({row[key] for row in rows for key in ("answer", "prediction") if row["candidates"]})
            if len(names) <= CLASSES and all(row["candidates"] for row in rows):
                right, said = ([names.index(row[key]) for row in rows] for key in ("answer", "prediction"))
                shown[f"confusion/{task}"] = wandb.plot.confusion_matrix(y_true=right, preds=said, class_names=names)
            self.experiment.log(shown)


def wandb_logger(save_dir: str, project: str, group: str, tags: list[str], **kwargs: Any) -> WandbRunLogger:
    """A W&B run named after the run folder: as WANDB_MODE says, else online if the user is logged in, else offline."""
    import wandb

    if isinstance(tags, str):  # its letters would be the tags
        raise LorachainsError(f"logger.tags is {tags!r}: give a list, as [{tags}]")
    # Not Lightning's `offline`: it sets WANDB_MODE, which wandb has read by then, and the next job would find it set.
    mode = os.environ.get("WANDB_MODE") or (None if wandb.login(prompt=False) else "offline")
    return WandbRunLogger(
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
        if isinstance(logger, WandbRunLogger):
            logger.log_results()
        status = "success"
    finally:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=0 if status == "success" else 1)
