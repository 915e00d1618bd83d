"""`python -m lorachains.generate`: JSON lines of a chain's answers, and of a run of one adapter."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lorachains
from lorachains.generate import main
from tests.cli.conftest import Train

Generate = Callable[..., tuple[Any, list[dict[str, Any]], str]]
CHAIN = ["method=chain_of_lora", "data.tasks=[chain_sum,syllogism]", "hydra.run.dir=run"]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Generate:
    def call(*arguments: str, said: str = "") -> tuple[Any, list[dict[str, Any]], str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["lorachains.generate", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def test_a_chain_answers_what_it_is_given(train: Train, generate: Generate) -> None:
    """By an argument with any characters, by a file, by standard input: the same."""
    assert train(*CHAIN).code == 0
    prompt = "What is {1, 'a'} = $x + [2]?"
    code, [line], err = generate("run=run", f"prompt={prompt}", "max_new_tokens=3", "top_k=2", "answers=all")
    assert code == 0, err
    assert line["prompt"] == prompt
    assert sum(probability for _, probability in line["top_k"]) == pytest.approx(1)
    assert line["task"] in ("chain_sum", "syllogism")
    assert {answer["task"] for answer in line["answers"]} == {"chain_sum", "syllogism"}
    assert line["answer"] == line["answers"][0]["answer"]
    assert line["seconds"].keys() == {"select", "generate"}
    Path("prompts.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    for given, said in (["prompts=prompts.jsonl"], ""), ([], prompt + "\n"):
        _, [again], err = generate("run=run", "max_new_tokens=3", *given, said=said)
        assert again["prompt"] == prompt, err
        assert again["top_k"][0] == pytest.approx(line["top_k"][0])


def test_each_batch_is_printed_when_it_is_answered(train: Train, generate: Generate) -> None:
    """What comes later may fail."""
    assert train(*CHAIN).code == 0
    long = json.dumps({"prompt": "x" * 3000})
    Path("prompts.jsonl").write_text(f'{{"prompt": "a"}}\n{{"prompt": "b"}}\n{long}\n')
    code, lines, err = generate("run=run", "prompts=prompts.jsonl", "max_new_tokens=900", "batch_size=2")
    assert code == 1
    assert [line["prompt"] for line in lines] == ["a", "b"], err


def test_a_run_of_one_adapter_selects_nothing(train: Train, generate: Generate) -> None:
    assert train("hydra.run.dir=run").code == 0
    code, [line], err = generate("run=run", "prompt=2 + 2 =", "max_new_tokens=2", "sampling={temperature: 0.7}")
    assert code == 0, err
    assert line["task"] == "adapter"
    assert "probability" not in line
    for wrong, says in (
        ("sampling={temp: 0.7}", "sampling is {'temp': 0.7}: give a mapping of temperature, top_k, top_p"),
        ("sampling=0.7", "sampling is 0.7: give a mapping"),
        ("top_k=2", "top_k is 2, but here nothing is selected: set top_k=1"),
        ("expert=lora", "run has no adapters with names, of which expert=lora could be one: leave it out"),
    ):
        code, _, err = generate("run=run", "prompt=x", wrong)
        assert (code, says in err, err.count("\n")) == (1, True, 1), err


def test_another_selector_selects(train: Train, generate: Generate) -> None:
    assert train(*CHAIN).code == 0
    settings = ["method=selector_full", "data.tasks=[chain_sum,syllogism]", "hydra.run.dir=selector"]
    assert train(*settings).code == 0
    code, [line], err = generate("run=run", "selector=selector", "prompt=2 + 2 =", "max_new_tokens=2", "top_k=2")
    assert code == 0, err
    _, [own], _ = generate("run=run", "prompt=2 + 2 =", "max_new_tokens=2", "top_k=2")
    assert dict(line["top_k"]).keys() == dict(own["top_k"]).keys()
    assert dict(line["top_k"]) != pytest.approx(dict(own["top_k"]))
    code, _, err = generate("run=run", "selector=run", "prompt=x")
    assert (code, "error: run holds no selector: selector.json is missing" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=nowhere", "prompt=x"], "nowhere holds no run"),
        (["run=.", "prompts=none.jsonl"], "prompts is 'none.jsonl': give a JSON Lines file"),
        (["run=."], "no instruction: give prompt="),
        (["run=.", "prompt= "], "prompt is empty"),
        (["run=.", "prompt=x", "prompts=none.jsonl"], "both prompt and prompts are given"),
        (["run=.", "prompt=x", "resident=maybe"], "resident is 'maybe': give true or false"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: list[str], says: str, generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines, err = generate(*arguments)
    assert (code, lines) == (1, [])
    assert f"error: {says}" in err


TASKS = "data.tasks=[chain_sum,syllogism]"


def test_a_mixture_tells_its_route(train: Train, generate: Generate) -> None:
    assert train("method=moa", TASKS, "hydra.run.dir=run").code == 0
    asked = ["run=run", "prompt=31 + 44 =", "max_new_tokens=3"]
    code, [line], err = generate(*asked)
    assert code == 0, err
    assert line["task"] in line["route"]["probabilities"].keys() == {"chain_sum", "syllogism"}
    assert (line["route"]["decision"], len(line["route"]["blocks"])) == ("vote", 2)
    assert line["seconds"].keys() == {"route", "generate"}
    _, [soft], err = generate(*asked, "decision=soft", "sampling={temperature: 0.7}")
    assert (soft["task"], soft["route"]["decision"]) == ("mixture", "soft"), err
    code, _, err = generate(*asked, "decision=best")
    assert (code, "decision is 'best': choose vote" in err) == (1, True)
    code, _, err = generate(*asked[:2], "max_new_tokens=null")
    assert (code, "max_new_tokens is None: give a whole number above 0" in err) == (1, True)
    code, _, err = generate(*asked, "threshold=0.5")
    assert (code, "run holds no chain" in err) == (1, True)
    code, _, err = generate(*asked, "expert=syllogism", "decision=soft", "threshold=0.5")
    assert (code, "expert=syllogism answers everything, so that threshold, decision decides" in err) == (1, True), err


def test_one_of_several_adapters_is_chosen_by_its_name(train: Train, generate: Generate) -> None:
    assert train("method=single_lora", TASKS, "hydra.run.dir=run").code == 0
    code, _, err = generate("run=run", "prompt=2 + 2 =")
    assert (code, "choose one with expert= of chain_sum, syllogism" in err) == (1, True)
    code, [line], err = generate("run=run", "prompt=2 + 2 =", "expert=chain_sum", "max_new_tokens=2")
    assert (code, line["task"]) == (0, "chain_sum"), err


def test_a_request_is_put_as_in_training(train: Train) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train("data=instructions", "data.path=rows.jsonl", "data.template=plain", "hydra.run.dir=run").code == 0
    assert lorachains.load("run").prompts.template == "{instruction}\n"
