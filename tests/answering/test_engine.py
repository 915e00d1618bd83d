"""A chain selects by exact likelihoods, and answers as each expert alone does, side by side or one after the other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lorachains
from lorachains.answering.engine import Answerer
from lorachains.data.tokens import prompt_tokens
from lorachains.errors import LorachainsError
from lorachains.evaluation import generator
from lorachains.generation import Sampling
from lorachains.loading import attach_adapter
from lorachains.models import LanguageModel
from tests.jobs import job, trained
from tests.runs import language_model

TASKS = ["one", "two", "free"]
TEXTS = ["one 3 xxxx?", "two 5 xx?", "free 9 x?", "something else altogether?"]
SETTINGS = ["optim.lr=2e-2", "adapter.target_modules=all-linear", "trainer.max_epochs=1", "method.select=loss"]
SIZES: dict[str, Any] = {"train_size": 9, "val_size": 4, "test_size": 4, "max_length": 128}


def base() -> LanguageModel:
    return language_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain")
    prompt = "method.task_prompt='{instruction} Task:'"
    trained([job(path, "method=chain_of_lora", prompt, *SETTINGS, tasks=TASKS, **SIZES)])
    return path


@pytest.fixture(scope="module")
def chain(folder: Path) -> Answerer:
    return lorachains.load(str(folder), base=base())


@pytest.mark.parametrize("resident", [False, True])
def test_scores_are_the_names_likelihoods_one_by_one(resident: bool, folder: Path) -> None:
    answerer = lorachains.load(str(folder), base=base(), resident=resident)
    alone = base()
    attach_adapter(alone, folder / "adapters" / "selector")
    tokenizer, found = alone.tokenizer, answerer.scores(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        prompt = tokenizer.encode(f"{text} Task:")
        for task, score in zip(TASKS, row.tolist(), strict=True):
            name = [*tokenizer.encode(f" {task}"), tokenizer.eos_token_id]
            with torch.no_grad():
                logits = alone.model(torch.tensor([prompt + name])).logits[0].log_softmax(-1)
            steps = [logits[len(prompt) - 1 + i, token] for i, token in enumerate(name)]
            assert score == pytest.approx(float(sum(steps)))


def test_probabilities_are_of_the_names_alone(chain: Answerer) -> None:
    for choice, row in zip(chain.select(TEXTS, k=3), chain.scores(TEXTS), strict=True):
        assert choice.probabilities == pytest.approx(sorted(row.softmax(0).tolist(), reverse=True))
        assert choice.adapter == choice.tasks[0]


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_each_answer_is_that_of_its_expert_alone(batch_size: int, resident: bool, folder: Path) -> None:
    answerer = lorachains.load(str(folder), base=base(), resident=resident)
    answered = answerer.generate(TEXTS, 6, k=3, batch_size=batch_size)
    for text, found in zip(TEXTS, answered, strict=True):
        assert {reply.adapter for reply in found.replies} == set(TASKS)
        for reply in found.replies:
            alone = base()
            attach_adapter(alone, folder / "adapters" / reply.adapter)
            [new] = generator(alone, graphs=False)([prompt_tokens(alone.tokenizer, text, 128).input_ids], 6)
            assert reply.text == str(alone.tokenizer.decode(new, skip_special_tokens=True)).strip()
            assert reply.tokens == len(new)


def test_the_best_candidate_is_the_likeliest_with_its_task(chain: Answerer) -> None:
    for answered in chain.generate(TEXTS, 4, k=3):
        known = dict(zip(answered.choice.tasks, answered.choice.probabilities, strict=True))
        together = [
            torch.tensor(known[reply.adapter]).log().item() + (reply.likelihood or 0.0) for reply in answered.replies
        ]
        assert together == sorted(together, reverse=True)
        assert all(reply.likelihood is not None and reply.likelihood < 0 for reply in answered.replies)


def test_an_unsure_selector_leaves_the_answer_to_the_fallback(folder: Path) -> None:
    """By default the model without an adapter."""
    answerer = lorachains.load(str(folder), base=base(), threshold=1.0)
    bare = base()
    plain = generator(bare, graphs=False)
    for text, answered in zip(TEXTS, answerer.generate(TEXTS, 5), strict=True):
        [reply] = answered.replies
        assert (answered.choice.adapter, reply.adapter) == ("base", "base")
        [new] = plain([prompt_tokens(bare.tokenizer, text, 128).input_ids], 5)
        assert reply.text == str(bare.tokenizer.decode(new, skip_special_tokens=True)).strip()
    another = lorachains.load(str(folder), base=base(), threshold=1.0, fallback="free")
    assert {answered.replies[0].adapter for answered in another.generate(TEXTS, 2)} == {"free"}


def test_generated_text_names_the_task(folder: Path) -> None:
    """The name that the selector's own text has in it; who has none in it is left to the fallback."""
    answerer = lorachains.load(str(folder), base=base(), selection="generate")
    assert answerer.settings is not None
    alone = base()
    attach_adapter(alone, folder / "adapters" / "selector")
    prompts = [alone.tokenizer.encode(f"{text} Task:") for text in TEXTS]
    texts = alone.tokenizer.batch_decode(generator(alone, graphs=False)(prompts, 9))
    words = {"one": texts[0][1:4].strip(), "two": "@@", "free": "##"}
    answerer.settings = replace(answerer.settings, names=words)
    expected = ["one" if words["one"] in text else "base" for text in texts]
    assert "one" in expected
    choices = answerer.select(TEXTS, batch_size=2)
    assert [choice.adapter for choice in choices] == expected
    assert all(choice.probabilities == () for choice in choices)


def test_a_sampled_answer_depends_on_its_seed_alone(chain: Answerer) -> None:
    whole = chain.generate(TEXTS, 6, sampling=Sampling([5, 6, 7, 8], temperature=2.0))
    [alone] = chain.generate(TEXTS[2:3], 6, sampling=Sampling([7], temperature=2.0))
    assert alone.replies[0].text == whole[2].replies[0].text


def test_a_run_of_one_adapter_answers_too(tmp_path: Path) -> None:
    trained([job(tmp_path, "method=lora", "trainer.max_epochs=1", **SIZES)])
    answerer = lorachains.load(str(tmp_path), base=base())
    [answered] = answerer.generate(["one?"], 4)
    assert answered.choice.tasks == ()
    assert answered.replies[0].adapter == "adapter"
    with pytest.raises(LorachainsError, match=r"holds no chain"):
        lorachains.load(str(tmp_path), base=base(), selection="exact")


@pytest.mark.parametrize("texts", ["31 + 44 =", [1], None])
def test_one_instruction_is_no_list(texts: Any, chain: Answerer) -> None:
    for answer in (chain.select, chain.generate):
        with pytest.raises(LorachainsError, match=r"is no list of instructions: give one, as \['…', '…'\]"):
            answer(texts)


def test_folders_and_bases_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match=r"config.yaml is missing"):
        lorachains.load(str(tmp_path))
    with pytest.raises(LorachainsError, match=r"fallback is 'x': choose base or one of one, two, free"):
        lorachains.load(str(folder), base=base(), fallback="x")
    with pytest.raises(LorachainsError, match=r"load has no fallbak"):
        lorachains.load(str(folder), base=base(), fallbak="base")
    with pytest.raises(LorachainsError, match=r"load it with its own base"):
        lorachains.load(str(folder), base=language_model(dtype=torch.float64, initializer_range=0.5))
