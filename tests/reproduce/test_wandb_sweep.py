"""A W&B sweep runs the same jobs, by W&B's own reading of its config."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lorachains.reproduce.sweeps import load
from lorachains.reproduce.wandb_sweep import write


@pytest.mark.parametrize("name", ["cola-table1", "cola-table4", "cola-table6"])
def test_the_same_jobs(name: str, tmp_path: Path) -> None:
    sweep = load(name, "small")
    ours = {
        frozenset(job.overrides) for row in sweep.rows for column in sweep.columns for job in sweep.jobs(row, column)
    }
    theirs: list[frozenset[str]] = []
    for file in write(sweep, tmp_path):
        config: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert (config["method"], config["program"]) == ("grid", "lorachains.train")
        command = config["command"]
        assert command[:4] == ["${env}", "${interpreter}", "-m", "${program}"]
        assert command[-1] == "${args_no_hyphens}"
        fixed = [part for part in command[4:-1] if part not in ("logger=wandb", "resume=true")]
        values = [of["values"] for of in config["parameters"].values()]
        for point in product(*values):
            swept = {key: {"value": value} for key, value in zip(config["parameters"], point, strict=True)}
            given = create_sweep_command_args({"args": swept})["args_no_hyphens"]
            theirs.append(frozenset([*fixed, *given]))
    assert len(theirs) == len(ours)
    assert set(theirs) == ours


def test_what_begins_with_other_runs_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(write(load("moa-table7", "small"), tmp_path)) == 1
    assert "moa-table7: left out, since their runs begin with others': MoE-LoRA, MoA" in caplog.text
    assert write(load("moa-routing", "small"), tmp_path) == []
