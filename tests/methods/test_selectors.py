"""A selector by itself is the chain's own, judged by exact likelihoods and by what it generates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.jobs import Job, train_jobs
from lorachains.methods import ChainOfLora, Full, Lora
from lorachains.selection import Names
from tests.jobs import job, metrics, predictions, same, trained
from tests.runs import any_method, fit, language_model, make_data

TASKS = ["one", "few", "free"]
PROMPT = r"method.task_prompt='{instruction} Task:'"
SMALL: dict[str, Any] = {"train_size": 9, "val_size": 3, "test_size": 4, "max_length": 128}
FULL = ["method=selector_full", PROMPT, "optim.lr=5e-3", "trainer.max_epochs=2"]


def of_kind(kind: str, folder: Path, *overrides: str, **data: Any) -> Job:
    dtype = "float64" if kind == "selector" else "float32"
    settings = [f"method={kind}", PROMPT, "optim.lr=5e-3", "trainer.max_epochs=2", *overrides]
    return job(folder, *settings, dtype=dtype, **{"tasks": TASKS, **SMALL, **data})


@pytest.fixture(scope="module", params=["selector", "selector_full"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    trained([of_kind(request.param, folder)])
    return folder


def test_a_lora_alone_is_the_selector_of_a_chain() -> None:
    """The same rows, in the same batches, from the same beginning."""
    steps = ["trainer.max_epochs=2"]
    base = language_model(dtype=torch.float64)
    chain = any_method("method=chain_of_lora", base=base, names=TASKS, selector_batch_size=4)
    single = any_method("method=selector", base=language_model(dtype=torch.float64), names=TASKS)
    assert isinstance(chain, ChainOfLora)
    assert isinstance(single, Lora)
    for method in (chain, single):
        data = make_data(method.base, tasks=TASKS)
        fit(method, *steps, module=method.reads(RunsDataModule([data])))
    for layer, bank in chain.chain.banks.items():
        for name in ("lora_A", "lora_B"):
            ours, theirs = getattr(single.chain.banks[layer], name)[0], getattr(bank, name)[0]
            assert theirs.norm() > 0
            assert (ours - theirs).norm() <= 1e-8 * theirs.norm()


def test_figures_follow_from_the_predictions(finished: Path) -> None:
    told, rows = metrics(finished), predictions(finished)
    best = [row["candidates"].index(max(row["candidates"])) for row in rows]
    gold = [TASKS.index(row["answer"].strip()) for row in rows]
    right = [a == b for a, b in zip(best, gold, strict=True)]
    for key in ("accuracy", "top1", "routed_accuracy"):
        assert told[f"test/selector/{key}"] == pytest.approx(sum(right) / len(right))
    assert told["test/accuracy"] == told["test/selector/accuracy"]
    assert (told["test/selector/top3"], told["test/selector/fallbacks"]) == (1, 0)
    for task, name in enumerate(TASKS):
        mine = [ok for ok, of in zip(right, gold, strict=True) if of == task]
        assert told[f"test/selector/{name}/accuracy"] == pytest.approx(sum(mine) / len(mine))
    assert told["val/selector/accuracy"] == told["val/accuracy"]
    counts = json.loads((finished / "confusion.json").read_text())["counts"]
    assert sum(counts[i][i] for i in range(3)) == sum(right)


def test_what_a_whole_model_generates_is_searched_for_names(tmp_path: Path) -> None:
    """By transformers, from the model that the run has saved; names are taken that such texts have in them."""
    trained([of_kind("selector_full", tmp_path / "before")])
    prompts = {row["source"]: row["prompt"] for row in predictions(tmp_path / "before")}
    texts = generated(tmp_path / "before" / "model", list(prompts.values()))
    letters = sorted({letter for text in texts for letter in text if letter.isascii() and letter.isalpha()})
    if not letters:
        pytest.skip("the random model writes no letter")
    names = f"method.task_names={{one: {letters[0]}, few: '@@', free: '##'}}"
    trained([of_kind("selector_full", tmp_path / "run", names)])
    rows = predictions(tmp_path / "run")
    texts = generated(tmp_path / "run" / "model", [row["prompt"] for row in rows])
    found = [Names([letters[0], "@@", "##"]).find(text) for text in texts]
    right = [match is not None and match.name == row["answer"].strip() for match, row in zip(found, rows, strict=True)]
    told = metrics(tmp_path / "run")
    assert told["test/selector/generated_accuracy"] == pytest.approx(sum(right) / len(right))
    assert told["test/selector/generated_fallbacks"] == found.count(None)


def generated(folder: Path, prompts: list[str]) -> list[str]:
    """What the saved model writes, of 10 tokens: the longest name's two, and 8 around it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=11, do_sample=False)
        texts.append(str(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts


def test_several_seeds_are_trained_side_by_side(tmp_path: Path) -> None:
    trained([of_kind("selector", tmp_path / "together" / str(seed), f"seed={seed}") for seed in (0, 5)])
    for seed in (0, 5):
        trained([of_kind("selector", tmp_path / "apart" / str(seed), f"seed={seed}")])
        assert same(tmp_path / "together" / str(seed), tmp_path / "apart" / str(seed), 1e-8)


@pytest.mark.parametrize("kind", ["selector", "selector_full"])
@pytest.mark.parametrize(
    ("overrides", "tasks", "says"),
    [
        ([], ["one"], "data.tasks is ['one']: give two at least"),
        (["+method.task_names.other=x"], TASKS, "method.task_names names other: the tasks are one, few, free"),
        (["method.decoys=2"], TASKS, "method.decoys is 2"),
    ],
)
def test_settings_that_can_not_be_followed(
    kind: str, overrides: list[str], tasks: list[str], says: str, tmp_path: Path
) -> None:
    [outcome] = train_jobs([of_kind(kind, tmp_path, *overrides, tasks=tasks)])
    while isinstance(outcome, Exception) and not isinstance(outcome, LorachainsError):
        assert isinstance(outcome.__cause__, Exception)
        outcome = outcome.__cause__
    assert says in str(outcome)


def test_direct_tuning_on_several_tasks_tells_what_a_mixed_lora_tells(tmp_path: Path) -> None:
    """All weights on all tasks at once: the same figures as those of a LoRA on all tasks."""
    for method in ("lora", "full"):
        trained([job(tmp_path / method, f"method={method}", "trainer.max_epochs=1", tasks=TASKS, **SMALL)])
    told = {method: metrics(tmp_path / method) for method in ("lora", "full")}
    keys = {method: {key for key in told[method] if key.startswith(("test", "val"))} for method in told}
    assert keys["lora"] == keys["full"] >= {f"test/{task}/loss" for task in TASKS}
    rows = [row for row in predictions(tmp_path / "full") if row["task"] == "few"]
    loss = sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    assert told["full"]["test/few/loss"] == pytest.approx(loss)
    assert isinstance(any_method("method=full"), Full)


def test_what_is_told_beside_the_tests_is_told_without_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain, too, whose routed answers are scored when the tests are over."""
    modes, save = [], Lora.save

    def noting(self: Lora, *args: Any) -> dict[str, float]:
        modes.append(any(module.training for module in self.model.modules()))
        return save(self, *args)

    monkeypatch.setattr(Lora, "save", noting)
    for kind in ("selector", "chain_of_lora"):
        trained([of_kind(kind, tmp_path / kind)])
    assert modes == [False, False]
