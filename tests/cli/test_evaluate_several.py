"""`python -m lorachains.evaluate` of runs of several adapters, of mixtures, and of what selects tasks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorachains.moa import main as moa
from tests.cli.conftest import Call, Train
from tests.cli.test_evaluate import Evaluate, evaluate  # noqa: F401  a fixture
from tests.encoders import save_encoder

TASKS = "data.tasks=[leg_counting,syllogism]"
SETTINGS = [TASKS, "hydra.run.dir=run", "optim.lr=0.1", "data.train_size=4", "data.test_size=3"]
METHODS = {
    "lora": [],
    "single_lora": [],
    "cola": ["+method.names=null", "knots=even", "knots.links=2", "trainer.max_epochs=2"],
    "moa": ["trainer.max_epochs=2"],
    "moa without routers": ["trainer.max_epochs=2", "method.eta=0"],
    "moe_lora": ["trainer.max_epochs=2"],
    "chain_of_lora": [],
    "chain_of_lora generated": ["method.selection=generate"],
    "chain_of_lora activated": ["method.activated=selector"],
    "selector": [],
    "selector_full": [],
    "classifier": ["data.max_length=400"],
}


def figures(folder: str, split: str = "test") -> dict[str, Any]:
    """What a run's own test found."""
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_scored_as_its_own_test_has_scored_it(
    method: str, train: Train, evaluate: Evaluate, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    encoder = [f"method.encoder={save_encoder(tmp_path / 'encoder')}"] if method == "classifier" else []
    done = train(f"method={method.split()[0]}", *SETTINGS, *METHODS[method], *encoder)
    assert done.code == 0, done.err
    code, found, err = evaluate("run=run", "output=scores")
    assert code == 0, err
    own = figures("run")
    assert found == own if method != "cola" else found == pytest.approx(own, rel=1e-5)
    assert len(own) > 2
    assert (
        Path("scores/predictions.jsonl").read_bytes() == Path("run/predictions.jsonl").read_bytes() or method == "cola"
    )
    pictures = {file.name for file in Path("run").glob("*.png")} | {f.name for f in Path("run").glob("*map.json")}
    assert {file.name for file in Path("scores").iterdir()} >= pictures
    validated, of_run = evaluate("run=run", "split=val")[1], figures("run", "val")
    common = of_run.keys() & validated.keys()
    assert common
    assert {key: validated[key] for key in common} == pytest.approx({key: of_run[key] for key in common}, rel=1e-5)
    assert "test/oracle/loss" not in own or "val/oracle/loss" in validated, "routes are told of either split"


def test_a_mixture_after_surgery(train: Train, evaluate: Evaluate, call: Call) -> None:  # noqa: F811
    """An expert put in again under another name leaves every text's answer as it was, and is scored on its own rows."""
    assert train("method=moa", *SETTINGS, *METHODS["moa"]).code == 0
    before = evaluate("run=run")[1]
    assert evaluate("run=run", "mixture=run/adapters")[1] == before
    assert train("data.task=family_relationships", "hydra.run.dir=new").code == 0
    three = "data.tasks=[leg_counting,syllogism,family_relationships]"
    more = ["run=run", "name=family_relationships", "adapter=new/adapter", "output=more", three]
    done = call(moa, "add", *more)
    assert done.code == 0, done.err
    code, found, err = evaluate("run=run", "mixture=more", three)
    assert code == 0, err
    table = dict(line.strip("| ").split(" | ", 1) for line in done.out.splitlines() if line.startswith("| r"))
    for name in ("leg_counting", "syllogism", "family_relationships"):
        for key in (f"routed/{name}/perplexity", f"router/{name}/accuracy"):
            assert f"{found[f'test/{key}']:.4g}" == table[key].split(" | ")[-1]
    code, _, err = evaluate("run=run", "mixture=more")
    assert code == 1
    assert "there is an adapter for each of ['leg_counting', 'syllogism', 'family_relationships'], but" in err


def test_changes_to_what_several_adapters_are_scored_on(train: Train, evaluate: Evaluate) -> None:  # noqa: F811
    assert train("method=single_lora", *SETTINGS, "optim.lr=[0.1,0.05]").code == 0
    own = figures("run")
    assert evaluate("run=run", "data.tasks=[syllogism]")[1]["test/loss"] == own["test/syllogism/loss"]
    swapped = evaluate("run=run", "data.tasks=[syllogism,leg_counting]")[1]
    assert swapped["test/leg_counting/loss"] == own["test/leg_counting/loss"]
    alone = evaluate("run=run", "adapter=run/adapters/syllogism")[1]
    assert alone["test/syllogism/loss"] == own["test/syllogism/loss"]
    assert alone["test/leg_counting/loss"] != own["test/leg_counting/loss"]
    assert evaluate("run=run", "++data.seed=7")[1].keys() == own.keys()


def test_a_mixture_that_was_trained_with_rows_without_a_domain(
    train: Train, evaluate: Evaluate, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    rows = [{"domain": d, "input": f"the {d} {i}", "output": "low"} for d in ("cat", "mat", None) for i in range(10)]
    Path(tmp_path, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=instructions", "data.path=rows.jsonl", "data.unlabelled=true"]
    done = train("method=moa", *SETTINGS[1:], *METHODS["moa"], *data)
    assert done.code == 0, done.err
    assert "4 training rows without a label are left out in stage 1" in done.out
    assert evaluate("run=run")[1] == figures("run")
    assert "test/oracle/cat/perplexity" in figures("run")


def test_changes_to_how_a_mixture_decides(train: Train, evaluate: Evaluate) -> None:  # noqa: F811
    assert train("method=moa", *SETTINGS, *METHODS["moa"]).code == 0
    assert train("method=moa", *SETTINGS, *METHODS["moa"], "method.decision=soft", "hydra.run.dir=soft").code == 0
    assert evaluate("run=run", "method.decision=soft")[1] == evaluate("run=soft")[1] == figures("soft")
    about = Path(shutil.copytree("run/adapters", "mixture"), "mixture.json")
    about.write_text(about.read_text().replace('"decision": "vote"', '"decision": "soft"'))
    assert evaluate("run=run", "mixture=mixture")[1] == figures("soft")
    assert evaluate("run=run", "mixture=mixture", "method.decision=vote")[1] == figures("run")
    code, _, err = evaluate("run=run", "method.pool=last")
    assert code == 1
    assert err == (
        "error: method.pool is 'last', but the routers in run/adapters were trained with 'mean_rms': leave it out\n"
    )


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("single_lora", ["data.tasks=[chain_sum]"], "no adapter for 'chain_sum': set data.tasks to some of leg_"),
        ("single_lora", ["demonstrations=2"], "demonstrations is 2, but run has no single adapter: set it to 0"),
        ("selector", ["data.tasks=[chain_sum]"], "what is selected among is ['leg_counting', 'syllogism'], but"),
        ("chain_of_lora", ["data.tasks=[chain_sum]"], "but the data's tasks are ['chain_sum']: give these alike"),
        ("chain_of_lora", ["method.treshold=0.5"], "method.treshold=0.5 changes what run/config.yaml does not have"),
        ("moa", ["mixture=nowhere"], "nowhere holds no mixture: mixture.json is missing"),
        ("moe_lora", ["mixture=run/adapters"], "mixture is run/adapters: give with it run=DIR, of the run of method"),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    method: str, arguments: list[str], says: str, train: Train, evaluate: Evaluate  # noqa: F811
) -> None:  # fmt: skip
    assert train(f"method={method}", *SETTINGS).code == 0
    code, _, err = evaluate("run=run", *arguments)
    assert code == 1
    assert says in err


def test_what_changes_nothing_or_overwrites_a_run_is_refused(train: Train, evaluate: Evaluate) -> None:  # noqa: F811
    assert train("hydra.run.dir=run").code == 0
    assert train("method=moa", *SETTINGS[:1], "hydra.run.dir=several").code == 0
    Path("file").touch()
    for arguments, says in (
        (["run=run", "method.select=last"], "method.select=last changes nothing: run has one adapter, or none"),
        (["run=several", "method.experts=x"], "method.experts=x is of training, which is over"),
        (["run=several", "method.eta=0"], "method.eta=0 is of training, which is over"),
        (["run=several", "output=run"], "output is run, a run's folder with metrics of its own: choose another"),
        (["run=several", "output=file"], "file: File exists: correct the path"),
        (["run=several", "adapter=run/adapter", "mixture=several/adapters"], "is made of, and no adapter"),
    ):
        code, found, err = evaluate(*arguments)
        assert (code, found, says in err) == (1, {}, True), err
        assert "rows" not in err, "it is known before anything is computed"
