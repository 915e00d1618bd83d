"""`hydra/sweeper=listed` runs the jobs of a file, and leaves in a failed one's folder the reason."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Train


@pytest.mark.parametrize("launcher", ["basic", "replicas"])
def test_jobs_that_are_no_product(launcher: str, train: Train, tmp_path: Path) -> None:
    jobs = [["seed=0"], ["seed=1", "adapter.r=4"], ["seed=2", "adapter.r=0"]]
    (tmp_path / "the jobs.json").write_text(json.dumps(jobs))
    listed = ["hydra/sweeper=listed", "hydra.sweeper.file='the jobs.json'", f"hydra/launcher={launcher}"]
    done = train("-m", "optim.lr=1e-4", *listed)
    assert done.code == 1
    assert "adapter.r is 0: give a rank of at least 1" in done.err
    made = {file.parent.name.split("-")[-2] for file in (tmp_path / "runs").glob("*/metrics.json")}
    assert made == {"seed0", "seed1"}
    [reason] = (tmp_path / "runs").glob("*-seed2-*/failure.txt")
    assert reason.read_text() == "adapter.r is 0: give a rank of at least 1\n"
    assert "lr: 0.0001" in next((tmp_path / "runs").glob("*-seed1-*/config.yaml")).read_text()
