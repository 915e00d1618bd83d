"""A multirun's jobs each have a folder and a logger's run of their own, and one that fails takes no other along."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.cli.conftest import Train

GRID = ["-m", "method=lora,cola", "knots=even", "knots.links=2", "seed=0,1"]


def test_each_job_has_its_own_folder(train: Train, tmp_path: Path) -> None:
    assert train(*GRID).code == 0
    folders = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(folders) == 4
    jobs = set()
    for folder in folders:
        config: Any = OmegaConf.load(folder / "config.yaml")
        jobs.add((config["method"]["_target_"].rsplit(".")[-1], config["seed"]))
        metrics = json.loads((folder / "metrics.json").read_text())
        assert {"test/score", "test_last/loss", "val/loss", "train/seconds"} <= metrics.keys()
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
        assert "optimizer step" in (folder / "train.log").read_text()
        assert list(folder.glob("csv/*/metrics.csv"))
    assert jobs == {("Lora", 0), ("Lora", 1), ("Cola", 0), ("Cola", 1)}
    again = train(*GRID, "resume=true")
    assert (again.code, again.out.count("is finished: nothing to resume")) == (0, 4)


def test_each_job_has_its_own_wandb_run(train: Train, tmp_path: Path) -> None:
    assert train(*GRID, "logger=wandb").code == 0
    runs = list((tmp_path / "runs").glob("*/wandb/offline-run-*"))
    assert len(runs) == len({run.parents[1] for run in runs}) == 4
    assert all(any(file.stat().st_size > 0 for file in run.glob("*.wandb")) for run in runs)


def test_a_failing_job_takes_no_other_along(train: Train, tmp_path: Path) -> None:
    done = train("-m", "adapter.r=2,0,4")
    assert done.code == 1
    assert "adapter.r=0" in done.err  # which job
    assert "adapter.r is 0: give a rank of at least 1" in done.err
    assert "Traceback" not in done.err
    finished = list((tmp_path / "runs").glob("*/metrics.json"))
    assert len(finished) == 2


def test_the_name_of_a_folder_follows_from_the_settings(train: Train, tmp_path: Path) -> None:
    """So the same command finds its run again; what doesn't change a result doesn't change the name."""
    assert train().code == 0
    [folder] = (tmp_path / "runs").iterdir()
    assert train("resume=true", "logger=wandb", "checkpoint_every=7").code == 0
    assert train("adapter.r=4").code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert folder.name.startswith("lora-tiny-leg_counting-seed0-")


def test_a_path_with_spaces_and_equals_signs(train: Train, tmp_path: Path) -> None:
    assert train("hydra.run.dir='a folder/r=8, seed 0'").code == 0
    assert (tmp_path / "a folder" / "r=8, seed 0" / "metrics.json").is_file()
