"""Whole commands: a figure that is cut keeps its finished parts; both sides train on the same rows."""

import json
from pathlib import Path

import commands
import pytest
from command_line import Parts, arguments
from measuring import Figures

from lorachains.errors import LorachainsError


def test_what_a_cut_command_has_found_is_not_measured_again(tmp_path: Path) -> None:
    path, measured = tmp_path / "figures.json", list[str]()

    def find(part: str) -> None:
        def measure() -> Figures:
            measured.append(part)
            return {"seconds": 1.5}

        Parts(path, {"rows": 8}, skip=["left out"]).find(part, measure)

    find("theirs")
    with pytest.raises(ZeroDivisionError):
        Parts(path, {"rows": 8}).find("ours", lambda: 1 / 0)
    for part in ("theirs", "left out", "ours"):
        find(part)
    assert measured == ["theirs", "ours"]
    assert json.loads(path.read_text())["parts"] == {"theirs": {"seconds": 1.5}, "ours": {"seconds": 1.5}}
    with pytest.raises(LorachainsError, match=r"figures\.json holds figures of another command"):
        Parts(path, {"rows": 9})


def test_a_figures_file_names_no_folder_of_its_machine(tmp_path: Path) -> None:
    """And goes on where the same model lies elsewhere."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        (folder / "model.gguf").touch()
        given = {"model": str(folder / "model.gguf"), "rows": 8}
        Parts(tmp_path / "figures.json", given).find(folder.name, lambda: 1.0)
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["settings"] == {"model": "model.gguf", "rows": 8}
    assert kept["parts"] == {"one": 1.0, "two": 1.0}


def test_wrong_settings_are_told_in_one_line() -> None:
    assert arguments(["model=tiny", "skip=ours,theirs"]) == {"name": "tiny", "skip": ["ours", "theirs"]}
    with pytest.raises(LorachainsError, match="'rows' is no setting: give key=value"):
        arguments(["rows"])


def test_the_grids_ratios_are_of_the_parts_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = {"seconds": 2.0, "command_seconds": 3.0}, {"run/seconds": 4.0, "command_seconds": 5.0}
    monkeypatch.setattr(commands, "_command_of_theirs", lambda *_: theirs)
    monkeypatch.setattr(commands, "_our_grid", lambda *_: ours)
    found = commands.grid("tiny", "DIR", str(tmp_path / "grid.json"), skip=["ours_again"])
    assert found["25 x theirs / ours"] == {"theirs, ours": 15.0}
    assert found["25 x theirs / ours, by run/seconds"] == {"theirs, ours": 12.5}


@pytest.mark.slow
def test_one_run_of_both_sides(data_root: Path) -> None:
    one = commands.one_run("tiny", str(data_root), rows=24, epochs=1, repeats=1)
    assert one["theirs / ours"] == one["theirs"][0] / one["ours"][0]


@pytest.mark.slow
def test_their_run_is_a_command_of_its_own(data_root: Path) -> None:
    one = commands._command_of_theirs("tiny", str(data_root), 96, 1, "default")
    assert len(one["val_accuracy"]) == 1
    assert 0 < one["seconds"] < one["command_seconds"]
