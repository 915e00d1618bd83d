"""`python -m lorachains.moa add`, `remove` and `replace`, on what `python -m lorachains.train` leaves."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lorachains.moa import main
from tests.cli.conftest import Call, Done, Train

Command = Callable[..., Done]
TASKS = ["data.tasks=[leg_counting,syllogism]", "data.train_size=4"]


@pytest.fixture
def command(call: Call) -> Command:
    return partial(call, main)


def test_domains_come_and_go(train: Train, command: Command) -> None:
    assert train("method=moa", *TASKS, "hydra.run.dir=run").code == 0
    assert train("data.task=family_relationships", "hydra.run.dir=new").code == 0
    three = "data.tasks=[leg_counting,syllogism,family_relationships]"
    more = ["run=run", "name=family_relationships", "adapter=new/adapter"]
    done = command("add", *more, "output=more", three)
    assert done.code == 0, done.err
    assert "| router/family_relationships/accuracy |  |" in done.out
    names = json.loads(Path("more/mixture.json").read_text())["names"]
    assert names == ["leg_counting", "syllogism", "family_relationships"]
    weights = "syllogism/adapter_model.safetensors"
    assert Path("more", weights).read_bytes() == Path("run/adapters", weights).read_bytes()
    assert "| syllogism |" in Path("more/README.md").read_text()
    again = command("add", *more, "mixture=more", "output=other", three)
    assert (again.code, again.err) == (1, "error: name=family_relationships is already among the mixture's experts: "
                                       "leg_counting, syllogism, family_relationships\n")  # fmt: skip
    done = command("replace", *more, "mixture=more", "output=other", three)
    assert done.code == 0, done.err
    done = command("remove", "run=run", "mixture=other", "name=syllogism", "output=less")
    assert done.code == 0, done.err
    assert json.loads(Path("less/mixture.json").read_text())["names"] == ["leg_counting", "family_relationships"]
    assert "error: add needs the expert: give adapter=DIR" in command("add", "run=run", "name=a", "output=b").err


def test_without_a_command(command: Command) -> None:
    assert command("run=run").err.startswith("error: give a command: python -m lorachains.moa add|remove|replace")
