"""`python -m lorachains.evaluate`: of a run, of its adapter alone, of a bare model, with changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorachains.evaluate import main
from tests.cli.conftest import Call, Train

Evaluate = Callable[..., tuple[Any, dict[str, float], str]]
TINY = ["model=tiny", "data.train_size=8", "data.val_size=2", "data.test_size=2", "data.max_new_tokens=2"]


@pytest.fixture
def evaluate(call: Call) -> Evaluate:
    def scored(*arguments: str) -> tuple[Any, dict[str, float], str]:
        done = call(main, *arguments)
        return done.code, json.loads(done.out) if done.code == 0 else {}, done.err

    return scored


def test_a_run_its_adapter_and_its_base(train: Train, evaluate: Evaluate) -> None:
    assert train("hydra.run.dir=run", "optim.lr=0.1").code == 0
    kept = json.loads(Path("run/metrics.json").read_text())
    code, of_run, err = evaluate("run=run", "output=scores")
    assert code == 0, err
    assert of_run == pytest.approx({key: kept[key] for key in of_run})
    assert of_run.keys() == {"test/score", "test/loss"}
    assert json.loads(Path("scores/metrics.json").read_text()) == of_run
    assert len(Path("scores/predictions.jsonl").read_text().splitlines()) == 2
    assert evaluate("adapter=run/adapter", *TINY)[1] == of_run
    assert evaluate(*TINY)[1]["test/loss"] != of_run["test/loss"]
    assert evaluate("run=run", "split=val")[1]["val/loss"] == pytest.approx(kept["val/loss"])


@pytest.mark.parametrize("method", ["full", "zero_shot", "icl"])
def test_a_run_without_an_adapter(method: str, train: Train, evaluate: Evaluate) -> None:
    """The weights that a run has trained, and the demonstrations that it has read."""
    assert train("hydra.run.dir=run", f"method={method}", "optim.lr=0.01").code == 0
    kept = json.loads(Path("run/metrics.json").read_text())
    code, of_run, err = evaluate("run=run")
    assert code == 0, err
    assert of_run == pytest.approx({key: kept[key] for key in of_run}, rel=1e-6)
    assert (evaluate(*TINY)[1]["test/loss"] == of_run["test/loss"]) == (method == "zero_shot")
    if method == "full":
        saved = ["model=hf", "model.name=run/model", "model.dtype=float32", *TINY[1:]]
        assert evaluate(*saved)[1] == of_run


def test_demonstrations_before_any_models_prompts(evaluate: Evaluate) -> None:
    code, with_them, err = evaluate(*TINY, "demonstrations=2")
    assert code == 0, err
    assert with_them["test/loss"] != evaluate(*TINY)[1]["test/loss"]
    code, _, err = evaluate(*TINY, "demonstrations=-2")
    assert code == 1
    assert "demonstrations is -2: give a whole number, 0 or more" in err


def test_changes_to_the_runs_own_settings(train: Train, evaluate: Evaluate) -> None:
    assert train("hydra.run.dir=run").code == 0
    _, before, _ = evaluate("run=run")
    _, other_task, _ = evaluate("run=run", "data.task=syllogism")
    assert other_task.keys() == {"test/accuracy", "test/loss"}
    assert evaluate("run=run", "++data.seed=5")[1] != before
    code, _, err = evaluate("run=run", "model.seed=5")  # known to this model alone, not to the default one
    assert code == 1
    assert "was trained on tiny" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=nowhere"], "nowhere holds no finished run: metrics.json is missing"),
        (["run=run", "data.tusk=rte"], "data.tusk=rte changes what run/config.yaml does not have"),
        (["run=run", "split=train"], "split is 'train': choose val or test"),
        (["adapter=nowhere", *TINY], "nowhere holds no adapter"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, train: Train, evaluate: Evaluate) -> None:
    if "run=run" in arguments:
        assert train("hydra.run.dir=run").code == 0
    code, _, err = evaluate(*arguments)
    assert code == 1
    assert says in err
