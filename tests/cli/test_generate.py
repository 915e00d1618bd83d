"""`python -m lorachains.generate`: JSON lines of a chain's answers, and of a run of one adapter."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_a_run_of_one_adapter_selects_nothing(train: Train, generate: Generate) -> None:
    assert train("hydra.run.dir=run").code == 0
    code, [line], err = generate("run=run", "prompt=2 + 2 =", "max_new_tokens=2", "sampling={temperature: 0.7}")
    assert code == 0, err
    assert line["task"] == "adapter"
    assert "probability" not in line


def test_the_bare_base_does_not_answer_for_adapters_that_nobody_chooses_among(train: Train, generate: Generate) -> None:
    assert train("method=single_lora", "data.tasks=[chain_sum,syllogism]", "hydra.run.dir=run").code == 0
    code, lines, err = generate("run=run", "prompt=2 + 2 =")
    assert (code, lines) == (1, [])
    assert "error: run holds several adapters and no chain" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=nowhere", "prompt=x"], "nowhere holds no run"),
        (["run=.", "prompts=none.jsonl"], "prompts is 'none.jsonl': give a JSON Lines file"),
        (["run=."], "no instruction: give prompt="),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: list[str], says: str, generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines, err = generate(*arguments)
    assert (code, lines) == (1, [])
    assert f"error: {says}" in err
