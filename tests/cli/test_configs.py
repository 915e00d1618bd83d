"""Every file in conf/ composes, instantiates and runs two optimizer steps; a model's needs only to exist."""

from pathlib import Path

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lorachains.config import conf_dir
from lorachains.run_folder import RunFolder
from tests.cli.conftest import Train

TWO_TASKS = ["data.tasks=[leg_counting,syllogism]", "data.train_size=4"]
STEPS = {
    "chain_of_lora": ["data.tasks=[chain_sum,syllogism]"],
    "moa": TWO_TASKS,
    "moe_lora": TWO_TASKS,
    "single_lora": TWO_TASKS,
    "selector": TWO_TASKS,
    "selector_full": TWO_TASKS,
    "classifier": [*TWO_TASKS, "method.encoder=tiny"],
    "at_epochs": ["knots.epochs=[1]", "trainer.max_epochs=2", "data.train_size=4"],
    "at_steps": ["knots.steps=[1]"],
    "even": ["knots.links=2"],
    "every": ["knots.n_steps=1"],
}
"""What a schedule of knots, or a method of several experts, needs to fit into two optimizer steps."""
TRAIN_NOTHING = ("icl", "zero_shot")
ONE_TASK = {"firefly": "data.task=NLI", "moa": "data.task=FINANCE", "superni": "data.task=task1289_trec_classification"}
"""Of those sets in which no task named is all of them, which would be more than two steps."""
FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().glob("*/*.yaml"))
RUN_AS_THEY_ARE = {"peft", "knots", "logger", "method", "optim", "trainer"}


def options(*groups: str) -> list[tuple[str, str]]:
    return [(path.parent.name, path.stem) for path in FILES if path.parent.name in groups and path.stem != "base"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def test_no_group_is_forgotten() -> None:
    known = RUN_AS_THEY_ARE | {"data", "model", "experiment", "hydra", "problem"}
    assert {path.parent.name for path in FILES} <= known


@pytest.mark.parametrize(("group", "option"), options(*RUN_AS_THEY_ARE))
def test_two_steps(group: str, option: str, train: Train, tmp_path: Path) -> None:
    chain = ["method=cola", *STEPS.get(option, [])] if group == "knots" else []
    if group == "method":
        chain = STEPS.get("even" if option == "cola" else option, [])
    place = "peft@adapter" if group == "peft" else group
    done = train(*chain, f"{place}={option}", "hydra.run.dir=run")
    assert done.code == 0, done.err
    metrics = RunFolder(tmp_path / "run").read_metrics()
    assert metrics["train/optimizer_steps"] == (0 if option in TRAIN_NOTHING else 2)
    if group == "knots" and option == "plateau":
        assert "no knot will be tied: the first can come after optimizer step 60" in done.out
    elif group == "knots" and option != "none":
        assert "knot 1 tied after optimizer step 1" in done.out


@pytest.mark.parametrize(("group", "option"), options("data"))
def test_two_steps_on_each_data_set(group: str, option: str, train: Train, request: pytest.FixtureRequest) -> None:
    place = [] if option == "reasoning_gym" else [f"data.root={request.getfixturevalue('data_root')}"]
    if option == "instructions":
        place = [f"data.path={request.getfixturevalue('data_root')}/firefly/Couplet.jsonl"]
    task = [ONE_TASK[option]] if option in ONE_TASK else []
    done = train(f"data={option}", *place, *task, "data.max_length=512", "hydra.run.dir=run")
    assert done.code == 0, done.err


@pytest.mark.parametrize(("group", "option"), options("model"))
def test_models_name_something_that_exists(group: str, option: str) -> None:
    config = composed(f"model={option}").model
    assert callable(get_object(config._target_))
    if option != "hf":
        assert not OmegaConf.missing_keys(config)


@pytest.mark.parametrize(("group", "option"), options("experiment"))
def test_experiments_run_two_steps_of_a_tiny_model(group: str, option: str, train: Train) -> None:
    """With its own method and schedule, on the offline data."""
    done = train(f"experiment={option}", "model=tiny", "data=reasoning_gym", "trainer.max_steps=2", "hydra.run.dir=run")
    assert done.code == 0, done.err


def test_everything_in_conf_is_a_target_that_exists() -> None:
    for path in FILES:
        for target in targets(OmegaConf.load(conf_dir() / path)):
            assert hydra.utils.get_object(target), (path, target)


def targets(node: object) -> list[str]:
    if isinstance(node, DictConfig):
        inner = [found for key in node if key != "_target_" for found in targets(node._get_node(key))]
        return [*inner, node["_target_"]] if "_target_" in node else inner
    return []
