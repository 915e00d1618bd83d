"""A table of runs: mean and spread over seeds, never over other settings."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lorachains.report import main, read_runs, spread, table


def finished(folder: Path, method: str, seed: int, lr: float, score: float) -> None:
    folder.mkdir(parents=True)
    settings = {
        "model": {"name": "org/Some-Model"}, "data": {"tasks": None, "task": "rte"}, "seed": seed, "optim": {"lr": lr},
        "method": {"_target_": f"lorachains.methods.{method}"},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    metrics = {"test/accuracy": score, "test_last/accuracy": score / 2, "run/seconds": 1.0, "train/links": 1}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_seeds_are_averaged_and_settings_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "a", "Lora", 0, 1e-3, 0.5)
    finished(tmp_path / "b", "Lora", 1, 1e-3, 0.7)
    finished(tmp_path / "c", "Lora", 0, 1e-4, 0.9)
    finished(tmp_path / "d", "Cola", 0, 1e-3, 0.8)
    assert main([str(tmp_path)]) == 0
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert rows == [
        ["Some-Model", "rte", "cola", "", "1", "1", "test accuracy %", "80.0", "40.0", "1.0"],
        ["Some-Model", "rte", "lora", "optim.lr=0.0001", "1", "1", "test accuracy %", "90.0", "45.0", "1.0"],
        [
            "Some-Model",
            "rte",
            "lora",
            "optim.lr=0.001",
            "1",
            "2",
            "test accuracy %",
            "60.0 ± 14.1",
            "30.0 ± 7.1",
            "1.0 ± 0.0",
        ],
    ]


def test_methods_without_links_or_a_learning_rate(tmp_path: Path) -> None:
    finished(tmp_path / "a", "ZeroShot", 0, 1e-3, 0.5)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    del metrics["train/links"]
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(metrics))
    config: Any = OmegaConf.load(tmp_path / "a" / "config.yaml")
    del config["optim"]
    OmegaConf.save(config, tmp_path / "a" / "config.yaml")
    finished(tmp_path / "b", "Full", 0, 1e-5, 0.7)
    rows = table(read_runs([tmp_path]))
    assert [list(column.cells) for column in rows.columns][2:5] == [["full", "zero_shot"], ["", ""], ["1", ""]]


def test_damaged_runs_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished(tmp_path / "good", "Lora", 0, 1e-3, 0.5)
    finished(tmp_path / "cut", "Lora", 0, 1e-3, 0.5)
    (tmp_path / "cut" / "metrics.json").write_text('{"test/acc')
    finished(tmp_path / "bare", "Lora", 0, 1e-3, 0.5)
    (tmp_path / "bare" / "config.yaml").write_text("a: 1")
    assert [run.metrics["test/accuracy"] for run in read_runs([tmp_path])] == [0.5]
    assert all(str(tmp_path / name) in caplog.text for name in ("cut", "bare"))


def test_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no finished run there" in capsys.readouterr().err


def test_spread() -> None:
    assert spread([1.0]) == "1.0"
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_loss_alone_is_shown_in_nats_and_all_tasks_by_their_sets_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "a", "Lora", 0, 1e-3, 0.5)
    settings = OmegaConf.load(tmp_path / "a" / "config.yaml")
    settings.data = {"_target_": "lorachains.data.instruction_sets.moa", "tasks": None, "task": None}
    OmegaConf.save(settings, tmp_path / "a" / "config.yaml")
    metrics = {"test/loss": 2.34567, "test_last/loss": 2.5, "run/seconds": 1.0, "train/links": 1}
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(metrics))
    assert main([str(tmp_path)]) == 0
    [row] = [[c.strip() for c in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert row[:3] + row[6:9] == ["Some-Model", "moa", "lora", "test loss (nats)", "2.346", "2.500"]
