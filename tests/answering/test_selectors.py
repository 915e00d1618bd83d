"""A selector that was trained by itself selects for a chain, in place of the chain's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import lorachains
import lorachains.loading
from lorachains.answering.engine import Answerer
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel
from tests.encoders import save_encoder
from tests.jobs import job, trained
from tests.runs import language_model

TASKS = ["one", "two", "free"]
TEXTS = ["one 3 xxxx?", "two 5 xx?", "free 9 x?", "something else altogether?"]
PROMPT = "method.task_prompt='{instruction} Task:'"
OTHER = "method.task_prompt='{instruction} It is'"
SIZES: dict[str, Any] = {"train_size": 9, "val_size": 4, "test_size": 4, "max_length": 128}
KINDS = ["selector", "selector_full", "classifier"]


def base() -> LanguageModel:
    return language_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain, and selectors of each kind whose tasks are in another order."""
    path = tmp_path_factory.mktemp("runs")
    encoder = save_encoder(path / "encoder")
    made = {
        "chain": ["method=chain_of_lora", PROMPT, "optim.lr=2e-2"],
        "selector": ["method=selector", OTHER, "optim.lr=5e-2"],
        "selector_full": ["method=selector_full", OTHER, "optim.lr=5e-3"],
        "classifier": ["method=classifier", f"method.encoder={encoder}", "optim.lr=5e-3"],
    }
    for name, settings in made.items():
        tasks = TASKS if name == "chain" else TASKS[::-1]
        dtype = "float32" if name == "selector_full" else "float64"
        trained([job(path / name, *settings, "trainer.max_epochs=1", dtype=dtype, tasks=tasks, **SIZES)])
    return path


def chain(runs: Path, kind: str, **settings: Any) -> Answerer:
    return lorachains.load(str(runs / "chain"), base=base(), selector=str(runs / kind), **settings)


def by_hand(runs: Path, kind: str, text: str) -> list[float]:
    """The probability of each of TASKS, by transformers from what the run has saved; of a LoRA, by the bank alone."""
    names = TASKS[::-1]
    if kind == "classifier":
        folder = runs / kind / "classifier"
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            told = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0].softmax(0)
        return told.flip(0).tolist()
    if kind == "selector_full":
        language: Any = AutoModelForCausalLM.from_pretrained(runs / kind / "model")
    else:
        alone = base()
        lorachains.loading.attach_adapter(alone, runs / kind / "adapter")
        language = alone.model
    tokenizer, scores = base().tokenizer, []
    prompt = tokenizer.encode(f"{text} It is")
    for name in names:
        answer = [*tokenizer.encode(f" {name}"), tokenizer.eos_token_id]
        with torch.no_grad():
            logits = language(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        scores.append(float(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer))))
    return torch.tensor(scores).softmax(0).flip(0).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_its_probabilities_replace_the_chains_own(kind: str, runs: Path) -> None:
    answerer, own = chain(runs, kind), lorachains.load(str(runs / "chain"), base=base())
    answered = answerer.generate(TEXTS, 3, k=2, batch_size=3)
    for text, found in zip(TEXTS, answered, strict=True):
        expected = dict(zip(TASKS, by_hand(runs, kind, text), strict=True))
        likeliest = sorted(TASKS, key=lambda task: -expected[task])[:2]
        assert dict(zip(found.choice.tasks, found.choice.probabilities, strict=True)) == pytest.approx(
            {task: expected[task] for task in likeliest}, abs=1e-4
        )
        assert {reply.adapter for reply in found.replies} == set(likeliest)
    before = [reply for found in own.generate(TEXTS, 3, k=3) for reply in found.replies]
    texts = {(reply.adapter, reply.text) for reply in before}
    assert {(reply.adapter, reply.text) for found in answered for reply in found.replies} <= texts


@pytest.mark.parametrize("kind", KINDS)
def test_the_threshold_and_the_fallback_are_the_chains(kind: str, runs: Path) -> None:
    choices = chain(runs, kind, threshold=1.0, fallback="two").select(TEXTS, k=1)
    assert {choice.adapter for choice in choices} == {"two"}


def test_a_lora_selects_also_where_one_adapter_is_in_memory(runs: Path) -> None:
    side_by_side, resident = (chain(runs, "selector", resident=resident) for resident in (False, True))
    for ours, theirs in zip(resident.generate(TEXTS, 3), side_by_side.generate(TEXTS, 3), strict=True):
        assert ours.replies[0].text == theirs.replies[0].text
        assert ours.choice.probabilities == pytest.approx(theirs.choice.probabilities)


def test_a_whole_model_may_generate_and_a_classifier_can_not(runs: Path) -> None:
    choices = chain(runs, "selector_full", selection="generate").select(TEXTS)
    assert all(choice.probabilities == () for choice in choices)
    with pytest.raises(LorachainsError, match="which generates no text: choose selection=exact"):
        chain(runs, "classifier", selection="generate")


@pytest.mark.parametrize("kind", KINDS)
def test_a_selector_of_other_tasks_is_refused(kind: str, runs: Path, tmp_path: Path) -> None:
    for name in runs.iterdir():
        (tmp_path / name.name).symlink_to(name)
    other = tmp_path / "other"
    other.mkdir()
    for file in (runs / kind).iterdir():
        if file.name != "selector.json":
            (other / file.name).symlink_to(file)
    text = (runs / kind / "selector.json").read_text()
    (other / "selector.json").write_text(text.replace('"two": "two"', '"three": "three"'))
    with pytest.raises(LorachainsError, match="selects among free, three, one, but the chain's tasks are one, two"):
        chain(tmp_path, "other")


def test_folders_that_do_not_fit(runs: Path) -> None:
    with pytest.raises(LorachainsError, match=r"holds no selector: selector.json is missing; give .* classifier run"):
        chain(runs, "chain")
    with pytest.raises(LorachainsError, match="holds a selector and none that answers"):
        lorachains.load(str(runs / "selector"), base=base())
