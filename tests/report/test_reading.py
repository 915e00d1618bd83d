"""What is a run, and what is left out with its reason."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lorachains.errors import LorachainsError
from lorachains.report.reading import read_runs, short
from tests.report.folders import make_run


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"test/acc', "can't be read as JSON"),
        ("", "can't be read as JSON"),
        ("[1, 2]", "no object of metrics"),
        ("5", "no object of metrics"),
        ("{}", "no run/seconds"),
        ('{"run/seconds": 1}', "no test metric"),
        ('{"run/seconds": 1, "test/accuracy": NaN}', "test/accuracy is nan: a finite number"),
        ('{"run/seconds": 1, "test/accuracy": "0.5"}', "test/accuracy is '0.5': a finite number"),
        ('{"run/seconds": 1, "test/accuracy": true}', "test/accuracy is True: a finite number"),
        ('{"run/seconds": 1, "test/accuracy": 74.5}', "test/accuracy is 74.5: a share from 0 to 1"),
        ('{"run/seconds": 1, "test/accuracy": 0.5, "val/rte/f1": -0.1}', "val/rte/f1 is -0.1: a share"),
        ("\xff\xfe", "can't be read as JSON"),
    ],
)
def test_wrong_metrics_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    make_run(tmp_path / "good", test=0.7)
    bad = make_run(tmp_path / "bad", seed=1)
    (bad / "metrics.json").write_bytes(text.encode("latin-1"))
    runs, left_out = read_runs([tmp_path])
    assert [run.value("test/accuracy") for run in runs] == [0.7]
    assert list(left_out) == [bad]
    assert reason in left_out[bad]
    assert f"left out {bad}" in caplog.text


def test_loss_is_the_metric_where_nothing_was_graded_and_a_set_of_all_tasks_goes_by_its_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    settings = OmegaConf.load(folder / "config.yaml")
    settings.data = {"_target_": "lorachains.data.instruction_sets.moa", "tasks": None, "task": None}
    OmegaConf.save(settings, folder / "config.yaml")
    metrics = {"run/seconds": 1, "test/loss_token_weighted": 2.2, "test/loss": 2.3, "test/perplexity": 10.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    [run], _ = read_runs([tmp_path])
    assert run.metric() == "loss"
    assert run.tasks == ["moa"]
    (folder / "metrics.json").write_text(json.dumps(metrics | {"test/rougeL": 0.5, "test/exact_match": 0.25}))
    assert read_runs([tmp_path])[0][0].metric() == "rougeL"


def test_a_config_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    for name, text in {"other": "a: 1", "broken": "a: [1", "list": "[1]", "binary": "\xff"}.items():
        bad = make_run(tmp_path / name)
        (bad / "config.yaml").write_bytes(text.encode("latin-1"))
    (make_run(tmp_path / "bare") / "config.yaml").unlink()
    runs, left_out = read_runs([tmp_path])
    assert len(runs) == 1
    assert {path.name for path in left_out} == {"other", "broken", "list", "binary", "bare"}
    assert "config.yaml is missing" in left_out[tmp_path / "bare"]
    assert "config.yaml has no method._target_" in left_out[tmp_path / "other"]


def test_other_configs_in_a_runs_folder_are_no_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for folder in (run / ".hydra", run / "wandb" / "offline-run-1" / "files"):
        folder.mkdir(parents=True)
        shutil.copy(run / "config.yaml", folder)
    runs, left_out = read_runs([tmp_path])
    assert ([r.path for r in runs], left_out) == ([run], {})


def test_a_run_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", test=0.7)
    make_run(tmp_path / "b", test=0.7, more=["trainer.devices=4"])
    make_run(tmp_path / "c", test=0.7, more=["data.root=elsewhere"])
    runs, left_out = read_runs([tmp_path, tmp_path / "a"])
    assert [run.path.name for run in runs] == ["a", "c"]
    assert left_out == {tmp_path / "b": f"the same settings as {tmp_path / 'a'}"}
    assert len(read_runs([tmp_path], ignore=["data.root"])[0]) == 1


def test_unfinished_runs_are_kept_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1, test=None)
    assert [run.metrics is None for run in read_runs([tmp_path])[0]] == [False, True]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match=r"nowhere is no folder"):
        read_runs([tmp_path / "nowhere"])
    make_run(tmp_path / "a", test=None)
    with pytest.raises(LorachainsError, match=r"no finished run"):
        read_runs([tmp_path])


def test_a_run_on_several_tasks_can_count_as_one_on_each(tmp_path: Path) -> None:
    parts = {"test/rte/accuracy": 0.8, "val/rte/accuracy": 0.9, "test/cb/f1": 0.6}
    make_run(tmp_path / "a", test=0.7, also=parts, more=["data.tasks=[rte,cb]"])
    [whole], _ = read_runs([tmp_path])
    assert (whole.value("task"), whole.metric(), whole.result("test", "accuracy")) == ("rte+cb", "accuracy", 0.7)
    rte, cb = read_runs([tmp_path], split_tasks=True)[0]
    assert [(run.value("task"), run.metric()) for run in (rte, cb)] == [("rte", "accuracy"), ("cb", "f1")]
    assert [rte.result(split, "accuracy") for split in ("test", "val")] == [0.8, 0.9]
    assert cb.result("val", "f1") is None


def test_values_by_key(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "zero_shot")
    [run], _ = read_runs([tmp_path])
    keys = ("method", "model", "task", "optim.optimizer", "optim.lr", "train/links", "knots.links")
    assert [run.value(key) for key in keys] == ["zero_shot", "Some-Model", "rte", "adamw", 1e-3, 1, None]
    names = {"a.Lora": "lora", "ChainOfLora": "chain_of_lora", "torch.optim.SGD": "sgd", "AtSteps": "at_steps"}
    assert {target: short(target) for target in names} == names


def test_settings_that_are_read_are_those_that_were_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", more=["knots.ranks=[8,4]"])
    assert OmegaConf.load(run / "config.yaml").knots.ranks == [8, 4]
    assert read_runs([tmp_path])[0][0].value("knots.ranks") == [8, 4]
    assert json.loads((run / "metrics.json").read_text())["test/accuracy"] == 0.5
