"""Each run's logger is its own and is closed whatever happens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from lorachains.loggers import finishing, wandb_logger


def test_csv_is_written_also_by_a_failing_run(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), "csv")

    def failing_run() -> None:
        with finishing(logger, {"seed": 0}):
            logger.log_metrics({"train/loss": 1.0}, step=1)
            raise KeyError

    with pytest.raises(KeyError):
        failing_run()
    assert (Path(logger.log_dir) / "metrics.csv").read_text().splitlines() == ["step,train/loss", "1,1.0"]


def test_each_wandb_run_is_finished_and_its_own(tmp_path: Path) -> None:
    """Two in one process, as in a multirun; the first one fails."""
    import wandb

    ids = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        logger = wandb_logger(str(tmp_path / name), "test", group="sweep", tags=["a"])
        try:
            with finishing(logger, {"optim": {"lr": 1e-3}}):
                ids.append(logger.experiment.id)
                assert logger.experiment.group == "sweep"
                assert logger.experiment.name == name
                assert logger.experiment.config["optim"] == {"lr": 1e-3}
                logger.log_metrics({"train/loss": 1.0}, step=1)
                if name == "first":
                    raise KeyError
        except KeyError:
            pass
        assert wandb.run is None
        [folder] = (tmp_path / name / "wandb").glob("offline-run-*")
        assert ids[-1] in folder.name
        assert any(file.stat().st_size > 0 for file in folder.glob("*.wandb"))
    assert len(set(ids)) == 2


def test_without_a_login_every_run_is_offline(tmp_path: Path) -> None:
    """In a process of its own: wandb reads the environment once."""
    script = (
        "import sys; from lorachains.loggers import finishing, wandb_logger\n"
        "for name in ('first', 'second'):\n"
        "    logger = wandb_logger(sys.argv[1] + '/' + name, 'test', group='sweep', tags=[])\n"
        "    with finishing(logger, {}):\n"
        "        assert logger.experiment.offline\n"
    )
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    hidden = {"WANDB_MODE", "WANDB_API_KEY", "NETRC"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/wandb/offline-run-*"))) == 2
