"""`python -m lorachains.theory`: both problems, the files that it leaves, and bad settings in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lorachains.theory.__main__ import main

Study = Callable[..., tuple[int, str, str]]
FEW = [
    "seeds=[0,1]", "frank_wolfe.steps=[2,4]", "frank_wolfe.batches=[2,T]", "chains.ranks=[1,2]", "chains.links=[1,2]",
    "chains.steps=6", "chains.every=3", "chains.tuning_seeds=[9]", "chains.rates=[0.1,0.2]",
]  # fmt: skip


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Study:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["lorachains.theory", *FEW, *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capfd.readouterr())

    return call


@pytest.mark.parametrize("problem", ["completion", "logistic"])
def test_results_and_figure(problem: str, study: Study) -> None:
    code, out, err = study(f"problem={problem}", "output=results")
    assert code == 0, err
    kept, printed = json.loads(Path(f"results/{problem}.json").read_text()), json.loads(out)
    assert kept["command"] == " ".join(["python -m lorachains.theory", *FEW, f"problem={problem}", "output=results"])
    assert kept["problem"]["_target_"].lower().endswith(problem)
    assert kept["frank_wolfe"] == printed["frank_wolfe"]
    assert len(kept["frank_wolfe"]) == 8
    for full, short in zip(kept["chains"], printed["chains"], strict=True):
        assert full.keys() - short.keys() == {"steps", "losses", "gaps"}
        assert len(full["losses"]) == len(full["gaps"]) == len(full["steps"]) == 3
        assert full["last_loss"] == pytest.approx(full["losses"][-1], rel=1e-4)
    figure = Path(f"results/{problem}.svg")
    assert ElementTree.parse(figure).getroot().tag.endswith("svg")
    before = figure.read_bytes()
    assert study(f"problem={problem}", "output=results")[0] == 0
    assert figure.read_bytes() == before


def test_without_an_output_nothing_is_left(study: Study, tmp_path: Path) -> None:
    assert study()[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("problem.radius=-1", "problem.radius is -1: give a finite number above 0"),
        ("seeds=[-1]", "seeds is -1: give whole numbers of at least 0"),
        ("chains.links=[7]", "chains.links is [7], but chains.steps is 6"),
    ],
)
def test_bad_settings_are_told_in_one_line(argument: str, says: str, study: Study) -> None:
    code, _, err = study(argument)
    assert code == 1
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert says in told[0]
