"""`python -m lorachains.human make` and `read`: from predictions to rates."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lorachains.human.__main__ import main
from tests.cli.conftest import Call, Done

Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, call: Call, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        rows = [{"prompt": f"p{i}", "prediction": f"{name} {i}"} for i in range(4)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    return partial(call, main)


def test_from_predictions_to_rates(command: Command) -> None:
    done = command("make", "systems={a:a.jsonl,b:b.jsonl}", "annotators=2", "prompts=3", "output=kit")
    assert done.code == 0, done.err
    key = json.loads(Path("kit/key.json").read_text())["items"]
    for annotator in (1, 2):
        mine = [name for name, owner in key.items() if owner["annotator"] == annotator]
        lines = [f"{name},{'excellent' if key[name]['system'] == 'b' else 'fail'}" for name in mine]
        Path(f"kit/{annotator}.csv").write_text("\n".join(["item,rating", *lines]))
    done = command("read", "sheets=[kit/1.csv,kit/2.csv]", "key=kit/key.json", "output=out/rates.json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary == json.loads(Path("out/rates.json").read_text())
    assert (summary["a/fail"], summary["b/excellent"], summary["agreement/alpha_ordinal"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "error: give a command"),
        (["show"], "error: give a command"),
        (["make", "systems={a:a.jsonl,c:c.jsonl}", "output=kit"], "error: c.jsonl is no file"),
        (["make", "systems=a.jsonl", "output=kit"], "error: systems is 'a.jsonl': give names and files"),
        (["make", "systems={a:a.jsonl}", "output=kit"], "error: prompts is 200, but only 4"),
        (["make", "output=kit"], "error: Missing mandatory value: systems"),
        (["read", "sheets=a.csv", "key=k"], "error: sheets is 'a.csv': give the filled sheets"),
        (["read", "sheets=[a.csv]", "key=k"], "error: k can't be read"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, command: Command) -> None:
    done = command(*arguments)
    assert done.code == 1
    assert says in done.err
