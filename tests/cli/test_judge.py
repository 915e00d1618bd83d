"""`python -m lorachains.judge`: predictions in, ratings and a summary out."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lorachains.judge.__main__ import main
from tests.cli.conftest import Call, Done
from tests.judge.endpoints import Asked, Said, Server, completion, endpoint

Command = Callable[..., Done]
KEY = "sk-very-secret"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, call: Call, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LORACHAINS_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    Path("run").mkdir()
    rows = [{"task": "t", "prompt": f"question {i}", "prediction": f"answer {i}", "answer": "gold"} for i in range(4)]
    Path("run/predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))

    return partial(call, main)


def answer(asked: Asked, before: int) -> Said:
    if "answer 2" in asked.prompt:
        return completion("I can't say.")
    if "answer 3" in asked.prompt:
        return Said(400, b"no")
    return completion(f"Fine.\nRating: {4 if 'answer 0' in asked.prompt else 5}")


@pytest.fixture
def server() -> Iterator[Server]:
    with endpoint(answer) as running:
        yield running


def test_a_run_is_rated_once(command: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_BASE_URL", server.url)
    arguments = ["run=run", "endpoint.model=m", "output=out/deep"]
    done = command(*arguments)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary == json.loads(Path("out/deep/summary.json").read_text())
    assert summary == {
        "judge/scale": "1-6", "judge/rows": 4, "judge/rated": 2, "judge/unparsable": 1, "judge/refused": 1,
        "judge/mean": 4.5, "judge/standard_error": pytest.approx(0.5), "t/mean": 4.5,
    }  # fmt: skip
    ratings = [json.loads(line) for line in Path("out/deep/ratings.jsonl").read_text().splitlines()]
    assert [row["rating"] for row in ratings] == [4, 5, None, None]
    assert [row["source"] for row in ratings] == [f"run/predictions.jsonl:{i}" for i in range(1, 5)]
    assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in server.asked)
    asked = len(server.asked)
    assert command(*arguments).out == done.out
    assert len(server.asked) == asked + 1  # the one that was refused
    files = [path.read_text() for path in Path().rglob("*") if path.is_file()]
    assert not any(KEY in text for text in [*files, done.out, done.err, command("--cfg", "job", "--resolve").out])


def test_points_with_the_right_answer(command: Command, server: Server) -> None:
    given = [f"endpoint.url={server.url}", "endpoint.model=m", "output=out", "predictions=run/predictions.jsonl"]
    assert command(*given, "scale=0-100", "reference=true", "rows=2", "~endpoint.request.max_tokens").code == 0
    assert len(server.asked) == 2
    assert all("gold" in request.prompt and "0 to 100" in request.prompt for request in server.asked)
    assert server.asked[0].body.keys() == {"model", "messages", "temperature"}


def test_a_model_on_this_machine(command: Command) -> None:
    arguments = ["run=run", "model=tiny", "output=out", "rows=2"]
    done = command(*arguments, "local.max_new_tokens=2")
    assert done.code == 0, done.err
    assert json.loads(done.out)["judge/unparsable"] == 2  # two random bytes
    done = command(*arguments, "local.max_new_tokens=500")
    assert done.code == 1
    assert "don't fit into the model's 1024 positions" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=run", "output=out"], "there is no judge: give endpoint.url"),
        (["run=run", "output=out", "endpoint.url=http://a/v1"], "endpoint.model is not given"),
        (["run=run", "output=out", "endpoint.url=http://a/v1", "+endpoint.x=1"], "endpoint: .*'x'"),
        (["run=run", "output=out", "scale=1-5"], "scale is '1-5': choose 1-6 or 0-100"),
        (["output=out"], "give either run=DIR"),
        (["run=run", "predictions=p", "output=out"], "give either run=DIR"),
        (["run=nowhere", "output=out"], "nowhere/predictions.jsonl is no file"),
        (["run=run"], "output"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, command: Command) -> None:
    done = command(*arguments)
    assert done.code == 1
    assert re.search(f"^error: .*{says}", done.err, re.MULTILINE), done.err
