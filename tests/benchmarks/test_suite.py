"""All figures within a budget of time: what is found is kept, what was cut is taken up again."""

import importlib
import inspect
import json
import sys
import time
from pathlib import Path

import pytest
import suite
from command_line import arguments

from lorachains.errors import LorachainsError

REAL = dict(suite.FIGURES)
SCRIPT = """
import json, subprocess, sys, time
figure, output = sys.argv[1], sys.argv[2].partition("=")[2]
if figure == "slow":
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(2); open('{output}/late', 'w')"])
    time.sleep(60)
if figure == "talking":
    print("[a library] welcome")
if figure == "bad":
    sys.exit("error: nothing to measure")
print(json.dumps({"seconds": 1.5, "given": sys.argv[1:]}))
"""


@pytest.fixture(autouse=True)
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    figures = {figure: f"{script} {figure} output={{output}}" for figure in ("quick", "bad", "talking", "slow", "last")}
    monkeypatch.setattr(suite, "FIGURES", figures | {"grid": f"{script} grid root={{root}}"})
    monkeypatch.setattr(suite, "LEAST", 0.5)


def test_what_is_found_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert suite.find("tiny", str(out), figures=["quick", "talking", "bad"]) == {
        "quick": "found",
        "talking": "failed: it printed no JSON, but '[a library] welcome\\n{\"seconds\"'",
        "bad": "failed with 1: error: nothing to measure",
    }
    found = json.loads((out / "quick.json").read_text())
    assert found == {"seconds": 1.5, "given": ["quick", f"output={out}", "model=tiny"]}
    assert suite.find("tiny", str(out), figures=["quick", "last"]) == {"quick": "kept", "last": "found"}


def test_the_time_is_kept_by_all_processes(tmp_path: Path) -> None:
    began = time.monotonic()
    found = suite.find("tiny", str(tmp_path), minutes=1 / 60, figures=["slow", "last"])
    assert found == {"slow": "cut", "last": "left"}
    assert time.monotonic() - began < 5
    time.sleep(2)
    assert not (tmp_path / "late").exists(), "a process of a process went on"


def test_commands_of_figures(tmp_path: Path) -> None:
    assert "grid" not in suite.commands("tiny", tmp_path, None, [])
    assert suite.commands("tiny", tmp_path, "DATA", [])["grid"][-2:] == ["root=DATA", "model=tiny"]
    assert suite.commands("tiny", tmp_path, None, ["last"])["last"][0] == sys.executable
    with pytest.raises(LorachainsError, match="figures has 'speed': choose among quick"):
        suite.commands("tiny", tmp_path, None, ["speed"])
    with pytest.raises(LorachainsError, match="give root=DIR"):
        suite.commands("tiny", tmp_path, None, ["grid"])


@pytest.mark.parametrize("figure", REAL)
def test_figures_are_there_and_know_their_settings(figure: str) -> None:
    script, function, *given = REAL[figure].split()
    known = inspect.signature(getattr(importlib.import_module(Path(script).stem), function)).parameters
    assert {"name", *arguments(given)} <= known.keys()
    assert {key for key, one in known.items() if one.default is one.empty} <= {"name", *arguments(given)}
