"""The commands that compare steps run on any machine, and refuse to compare different computations."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
import measuring
import pytest
import speed
from serving import serving

from lorachains.errors import LorachainsError


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WINDOW", 4)


def test_a_step_of_both_sides() -> None:
    found = speed.step("tiny", rows=2, seq=16, steps=24)
    means = found["mean of the first losses"]
    assert means["ours"] == pytest.approx(means["theirs"], rel=1e-4), "the same adapter, the same rows"
    assert len(found["ours"]["windows"]) == 5
    assert found["ratios"]["hf_default / ours"] == found["hf_default"]["step_seconds"] / found["ours"]["step_seconds"]


def test_a_step_over_real_texts(tmp_path: Path) -> None:
    """Of their own lengths, each again and again."""
    folder = tmp_path / "superglue" / "RTE"
    folder.mkdir(parents=True)
    pair = {"premise": "No hen has three legs.", "hypothesis": "A hen has legs.", "label": "not_entailment"}
    for split in ("train", "val"):
        rows = [pair | {"premise": f"{pair['premise'] * (i % 3 + 1)} {split} {i}", "idx": i} for i in range(40)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = speed.step("tiny", rows=2, steps=24, root=str(tmp_path))
    means = found["mean of the first losses"]
    assert means["ours"] == pytest.approx(means["theirs"], rel=1e-4)
    assert found["tokens"] > 2 * len(pair["premise"])


def test_different_computations_are_not_compared() -> None:
    with pytest.raises(LorachainsError, match="the two sides train differently"):
        measuring.check_same([2.0, 1.0], [2.0, 1.1])


def test_runs_side_by_side() -> None:
    found = speed.side_by_side("tiny", rows=2, seq=16, runs=[1, 3], steps=24)
    assert found["seconds_per_run"]["3"] == found["3"]["step_seconds"] / 3


def test_mixed_batches() -> None:
    found = speed.mixed("tiny", rows=4, seq=16, adapters=[1, 4], steps=24)
    assert {"1", "4", "peft, one adapter"} == found.keys()


def test_knots_of_both_modes() -> None:
    found = speed.knot("tiny", rows=2, seq=16, knots=3)
    assert all(found[mode][part]["seconds"] > 0 for mode in ("ledger", "merge") for part in ("step", "knot"))


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(sys, "argv", ["speed.py", "figure", "model=tiny", "rows=8", "runs=1,5", "best=true"])

    def figure(name: str, rows: int, runs: Sequence[int], best: bool = False) -> dict[str, float]:
        given.update(name=name, rows=rows, runs=runs, best=best)
        return {"seconds": 1.5}

    command_line.run({"figure": figure})
    assert given == {"name": "tiny", "rows": 8, "runs": [1, 5], "best": True}
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"] == "figure model=tiny rows=8 runs=1,5 best=true"
    assert printed["seconds"] == 1.5


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["rows=8", "sek=64"], "sek is no setting here: give some of model, rows, seq, random, best, steps"),
        (["seq=64"], "rows is missing: give rows=…"),
        (["rows=0", "seq=64"], "rows is 0: give a whole number above 0"),
        (["rows=8", "seq=many"], "seq is 'many': give a whole number above 0"),
        (["rows=8", "seq=64", "best=1"], "best is 1: give true or false"),
        (["rows=8", "seq=64", "runs=1,x"], "runs is '1,x': give whole numbers above 0 with commas between"),
        (["rows=8", "seq=64", "model=none"], "Could not find 'model/none'"),
    ],
)
def test_one_line_says_what_is_wrong(pairs: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "step", *pairs])
    with pytest.raises(SystemExit) as end:
        command_line.run({"step": speed.step})
    assert says in str(end.value)
    assert "\n" not in str(end.value)


def test_one_of_what_others_take_lists_of() -> None:
    given = command_line.arguments(["adapters=8", "rows=2"])
    assert command_line.fitting(serving, given) == {"name": "smollm2-135m", "adapters": 8, "rows": 2}


@pytest.mark.parametrize("loss", [float("nan"), -1.2e34, 11.0])
def test_settings_that_train_otherwise_are_no_figure(loss: float) -> None:
    """As Trainer's with liger-kernel inside `torch_compile`."""
    assert "the mean loss is" in speed._if_it_trains({"loss": loss, "step_seconds": 0.1}, 11.96)["not_measured"]
    for fine in ({"loss": 11.91, "step_seconds": 0.1}, {"not_measured": "ImportError: none"}):
        assert speed._if_it_trains(fine, 11.96) == fine
