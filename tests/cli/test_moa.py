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


def test_what_fails_leaves_nothing(train: Train, command: Command) -> None:
    """No folder that looks like a mixture, and all that was there as it was."""
    assert train("method=moa", *TASKS, "hydra.run.dir=run").code == 0
    assert train("method=moe_lora", *TASKS, "hydra.run.dir=by_token").code == 0
    assert train("data.task=family_relationships", "adapter.target_modules=[q_proj]", "hydra.run.dir=new").code == 0
    three = "data.tasks=[leg_counting,syllogism,family_relationships]"
    add = ["run=run", "adapter=new/adapter", "output=parent/more"]
    before = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for told, given in {
        "there are no rows of family_relationships": [*add, "name=family_relationships"],
        "adapter=new/adapter and the mixture's experts differ in": [
            *add,
            "name=family_relationships",
            three,
        ],  # it has other layers
        "name: the task label is '../new'": [*add, "name=../new"],
        f"name: the task label is '{Path('new').absolute()}'": [*add, f"name={Path('new').absolute()}"],
        "rows is 0: give a whole number above 0": [*add, "name=a", "rows=0"],
        "name is ['a', 'b']: give one name": [*add, "name=[a,b]"],
        "output is None: give one name": [*add[:2], "name=a", "output=null"],
        "lies within the mixture": [*add[:2], "name=a", "output=run/adapters/more"],
        "name=5 is not among": ["run=run", "name=5", "adapter=new/adapter", "output=parent/more"],
        "whose routers know no domains": ["run=by_token", "name=a", *add[1:]],
    }.items():
        done = command("replace" if "name=5" in given else "add", *given)
        assert done.code == 1
        [line] = [line for line in done.err.splitlines() if "INFO" not in line]
        assert line.startswith("error: ")
        assert told in line
    after = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert {path for path in after if path not in before} <= {path for path in after if "outputs" in path}
    assert all(after[path] == content for path, content in before.items())
    assert not list(Path("parent").iterdir())


def test_without_a_command(command: Command) -> None:
    assert command("run=run").err.startswith("error: give a command: python -m lorachains.moa add|remove|replace")
