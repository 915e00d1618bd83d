"""A run's folder is begun, gone on with, or begun anew as asked, and nothing in it is ever half written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorachains.answering.folder import FILE, SELECTOR_FILE
from lorachains.errors import LorachainsError
from lorachains.evaluation import Prediction
from lorachains.run_folder import OF_SEVERAL, RunFolder, resumable

SETTINGS: dict[str, Any] = {"optim": {"lr": 1e-3, "schedule": "linear"}, "tasks": ["a", "b"], "seed": 0}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run's."""
    made = RunFolder(tmp_path / "a run")
    made.begin(SETTINGS, resume=False, overwrite=False)
    made.checkpoint.parent.mkdir()
    torch.save({"state_dict": {"x": torch.ones(2)}}, made.checkpoint)
    made.adapter.mkdir()
    (made.adapter / "old").touch()
    made.write_metrics({"test/accuracy": 0.5})
    made.write_predictions([])
    return made


def test_a_new_folder_starts_from_the_beginning(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "er")
    folder.begin(SETTINGS, resume=False, overwrite=False)
    assert folder.config.is_file()
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_used_folder_is_not_touched_unasked(folder: RunFolder, finished: bool) -> None:
    if not finished:
        folder.metrics.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    with pytest.raises(LorachainsError, match=f"already holds {'a finished' if finished else 'an unfinished'} run"):
        folder.begin(SETTINGS, resume=False, overwrite=False)
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_overwriting_leaves_nothing_of_the_old_run(folder: RunFolder) -> None:
    folder.begin({**SETTINGS, "seed": 1}, resume=False, overwrite=True)
    assert [path.name for path in folder.path.rglob("*")] == ["config.yaml"]
    assert "seed: 1" in folder.config.read_text()


def test_a_folder_that_is_begun_anew_is_no_chain_and_no_selector_any_more(folder: RunFolder) -> None:
    assert {FILE, SELECTOR_FILE} < set(OF_SEVERAL)
    for name in (*OF_SEVERAL, "notes.json"):
        (folder.path / name).touch()
    folder.begin(SETTINGS, resume=False, overwrite=True)
    assert sorted(path.name for path in folder.path.rglob("*")) == ["config.yaml", "notes.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_resuming_keeps_all_also_when_asked_to_overwrite(folder: RunFolder, overwrite: bool) -> None:
    before = sorted(folder.path.rglob("*"))
    folder.begin(SETTINGS, resume=True, overwrite=overwrite)
    assert sorted(folder.path.rglob("*")) == before
    assert resumable(folder.checkpoint) == folder.checkpoint


def test_resuming_without_a_checkpoint_starts_anew(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder.checkpoint.unlink()
    assert resumable(folder.checkpoint) is None
    assert "starting from the beginning" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optim": {"lr": 2e-3, "schedule": "linear"}}, r"optim.lr is 0.002 here and 0.001 in .*config.yaml"),
        ({"tasks": ["a"]}, r"tasks is \['a'\] here and \['a', 'b'\]"),
        ({"new": 1}, "new is 1 here and None"),
    ],
)
def test_resuming_with_other_settings_names_them(folder: RunFolder, change: dict[str, Any], says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        folder.begin({**SETTINGS, **change}, resume=True, overwrite=False)


@pytest.mark.parametrize("content", [b"", b"no zip", None], ids=["empty", "text", "cut"])
def test_a_damaged_checkpoint_is_named(folder: RunFolder, content: bytes | None) -> None:
    whole = folder.checkpoint.read_bytes()
    folder.checkpoint.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(LorachainsError, match=r"last\.ckpt can't be read") as raised:
        resumable(folder.checkpoint)
    assert "\n" not in str(raised.value)


def test_a_flipped_byte_in_a_tensor_is_found(folder: RunFolder) -> None:
    torch.save({"x": torch.arange(1000)}, folder.checkpoint)
    content = bytearray(folder.checkpoint.read_bytes())
    content[len(content) // 2] ^= 0xFF
    folder.checkpoint.write_bytes(content)
    with pytest.raises(LorachainsError, match="can't be read"):
        resumable(folder.checkpoint)


def test_metrics_come_back(folder: RunFolder) -> None:
    assert folder.read_metrics() == {"test/accuracy": 0.5}


@pytest.mark.parametrize(("content", "says"), [(None, "holds no finished run"), ("{", "can't be read as JSON")])
def test_bad_metrics_are_named(folder: RunFolder, content: str | None, says: str) -> None:
    folder.metrics.unlink()
    if content:
        folder.metrics.write_text(content)
    with pytest.raises(LorachainsError, match=says):
        folder.read_metrics()


@pytest.mark.parametrize(
    "content", [None, b"a: [", b"- a", b"", b"a: \xff\xfe"], ids=["missing", "cut", "list", "empty", "bytes"]
)
def test_bad_settings_are_named(folder: RunFolder, content: bytes | None) -> None:
    folder.config.unlink()
    if content is not None:
        folder.config.write_bytes(content)
    with pytest.raises(LorachainsError, match=r"config\.yaml (can't be read|holds no settings)") as raised:
        folder.read_config()
    assert "\n" not in str(raised.value)


def test_predictions_are_one_json_object_a_line(folder: RunFolder) -> None:
    rows = [Prediction("task", "file:1", "a\nb", "é", "\u2028", {"accuracy": 1.0}, 0.5, 2, [-0.5, -1.0])] * 2
    folder.write_predictions(row.row() for row in rows)
    lines = folder.predictions.read_text().removesuffix("\n").split("\n")
    assert [Prediction(**json.loads(line)) for line in lines] == rows


def test_overwriting_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for file in (
        folder.metrics,
        folder.predictions,
        folder.checkpoint,
        folder.adapter / "a",
        folder.adapters / "b" / "a",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    folder.begin({"seed": 0}, resume=False, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["config.yaml"]
