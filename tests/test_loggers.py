"""Each run's logger is its own and is closed whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from lorachains.errors import LorachainsError
from lorachains.loggers import CLASSES, finishing, wandb_logger
from lorachains.mixture_figures import draw_blocks
from tests.wandb_files import logged, records


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
        logger = wandb_logger(str(tmp_path / name), "test", "sweep", ["a"], log_predictions=False, log_adapter=False)
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
        "    logger = wandb_logger(\n"
        "        sys.argv[1] + '/' + name, 'test', group='sweep', tags=[], log_predictions=False, log_adapter=False\n"
        "    )\n"
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


def finished_run(folder: Path, answers: list[str]) -> Path:
    """A run's folder with predictions, all wrong but the first, and an adapter."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    rows = [
        {"task": "cb", "source": f"val:{i}", "prompt": "?", "answer": answer, "prediction": answers[0], "loss": 0.5,
         "scores": {"accuracy": float(i == 0)}, "candidates": [-0.1, -0.2]}
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pictures_of_a_runs_folder_are_logged(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    draw_blocks([0.5, 1.0], 1.0, tmp_path / "run" / "router_blocks.png")
    logger = wandb_logger(str(tmp_path / "run"), "test", "sweep", [], log_predictions=False, log_adapter=False)
    with finishing(logger, {"seed": 0}):
        pass
    [file] = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert any(name.startswith("pictures/router_blocks") for name, _ in logged(records(file)))
    assert len(list(file.parent.glob("files/media/images/pictures/router_blocks*.png"))) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_an_offline_folder_holds_what_was_asked_for(asked: bool, tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", [" yes", " no", " yes"])
    logger = wandb_logger(str(folder), "test", "sweep", [], log_predictions=asked, log_adapter=asked)
    with finishing(logger, {"seed": 0}):
        logger.log_metrics({"val/accuracy": 0.25}, step=1)
        logger.log_metrics({"val/accuracy": 0.75, "test/accuracy": 0.5}, step=2)
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    found = records(file)
    artifacts = {record.artifact.type for record in found if record.HasField("artifact")}
    names = {name for name, _ in logged(found)}
    assert ("model" in artifacts) == asked
    assert ("predictions/cb" in names) == asked
    assert any(name.startswith("confusion/cb") for name in names) == asked
    assert [value for name, value in logged(found) if name == "trainer/global_step"][:2] == [1, 2]
    tables = [json.loads(path.read_text()) for path in file.parent.glob("files/media/table/predictions/*.json")]
    assert [(table["columns"][-1], [row[-1] for row in table["data"]]) for table in tables] == (
        [("accuracy", [1.0, 0.0, 0.0])] if asked else []
    )


def test_predictions_of_answers_that_were_not_generated(tmp_path: Path) -> None:
    """Rows that are judged by their likelihood have no prediction; they make a table all the same."""
    folder = finished_run(tmp_path / "run", ["yes", "no"])
    rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    nothing: dict[str, object] = {"prediction": None, "scores": {}, "candidates": []}
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row | nothing) + "\n" for row in rows))
    logger = wandb_logger(str(folder), "test", "sweep", [], log_predictions=True, log_adapter=False)
    with finishing(logger, {"seed": 0}):
        pass
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    names = {name for name, _ in logged(records(file))}
    assert "predictions/cb" in names
    assert not any(name.startswith("confusion") for name in names)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"tags": "abc"}, "logger.tags is 'abc'"), ({"log_predictions": "no"}, "logger.log_predictions is 'no'")],
)
def test_settings_that_mean_something_else_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    right: dict[str, Any] = {"tags": [], "log_predictions": False, "log_adapter": False}
    with pytest.raises(LorachainsError, match=says):
        wandb_logger(str(tmp_path), "test", "sweep", **(right | settings))


def test_many_different_answers_make_no_confusion_matrix(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", [f" {i}" for i in range(CLASSES + 1)])
    logger = wandb_logger(str(folder), "test", "sweep", [], log_predictions=True, log_adapter=False)
    with finishing(logger, {"seed": 0}):
        pass
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    names = {name for name, _ in logged(records(file))}
    assert "predictions/cb" in names
    assert not any(name.startswith("confusion") for name in names)
