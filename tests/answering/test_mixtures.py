"""A mixture routes by its routers, and answers as the experts that it has decided on do."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lorachains
from lorachains.answering.engine import Answerer
from lorachains.answering.mixtures import MixtureAnswerer
from lorachains.data.tokens import prompt_tokens
from lorachains.decisions import one_expert
from lorachains.errors import LorachainsError
from lorachains.evaluation import generator
from lorachains.generation import Sampling
from lorachains.loading import attach_adapter
from lorachains.mixture_format import attach_mixture
from lorachains.models import LanguageModel
from tests.jobs import job, trained
from tests.runs import language_model

TASKS = ["one", "two", "free"]
TEXTS = ["one 3 xxxx?", "two 5 xx?", "free 9 x?", "something else altogether?", "?"]
SETTINGS = ["optim.lr=2e-2", "adapter.target_modules=all-linear", "trainer.max_epochs=1", "method.select=loss"]
SIZES: dict[str, Any] = {"train_size": 9, "val_size": 3, "test_size": 3, "max_length": 128}


def base() -> LanguageModel:
    return language_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    names = f"method.names=[{','.join(TASKS)}]"
    own = {"moa": ["method.stage1_epochs=0", "method.router_lr=1e-1", "method.heat_map=false"], "single_lora": []}
    for method, more in {**own, "moe_lora": ["method.router_lr=1e-1"]}.items():
        trained([job(path / method, f"method={method}", names, *SETTINGS, *more, tasks=TASKS, **SIZES)])
    return path


def loaded(folder: Path, **settings: Any) -> Answerer:
    return lorachains.load(str(folder), base=base(), **settings)


def alone(folder: Path, text: str, most: int) -> str:
    """What one adapter answers."""
    own = base()
    attach_adapter(own, folder)
    [new] = generator(own, graphs=False)([prompt_tokens(own.tokenizer, text, 128).input_ids], most)
    return str(own.tokenizer.decode(new, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("decision", ["vote", "first", "last", "argmax", "soft"])
def test_the_route_is_what_the_routers_say(decision: str, runs: Path) -> None:
    own = base()
    mixture, _ = attach_mixture(own, runs / "moa" / "adapters", decision)
    logits = mixture.logits([prompt_tokens(own.tokenizer, text, 128).input_ids for text in TEXTS])
    for i, choice in enumerate(loaded(runs / "moa", decision=decision).select(TEXTS, batch_size=2)):
        assert choice.route is not None
        assert choice.route.decision == decision
        assert choice.route.blocks == tuple(TASKS[expert] for expert in logits[:, i].argmax(-1).tolist())
        assert choice.route.voted == TASKS[int(one_expert(logits, "vote")[i])]
        assert list(choice.route.probabilities.values()) == pytest.approx(logits[:, i].softmax(-1).mean(0).tolist())
        one = decision in ("vote", "first", "last")
        assert choice.adapter == (TASKS[int(one_expert(logits, decision)[i])] if one else "mixture")


def test_of_some_voters_the_probabilities_are_theirs(runs: Path) -> None:
    answerer = loaded(runs / "moa")
    assert isinstance(answerer, MixtureAnswerer)
    answerer.mixture.voters = [1]
    prompts = [prompt_tokens(answerer.base.tokenizer, text, 128).input_ids for text in TEXTS]
    logits = answerer.mixture.logits(prompts)
    for i, choice in enumerate(answerer.select(TEXTS, batch_size=2)):
        assert choice.route is not None
        assert list(choice.route.probabilities.values()) == pytest.approx(logits[1, i].softmax(-1).tolist())
        assert choice.adapter == choice.route.blocks[1]
    with pytest.raises(LorachainsError, match="top_k is 0: give a whole number above 0"):
        answerer.select(TEXTS, k=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_answer_is_that_of_its_expert_alone(batch_size: int, runs: Path) -> None:
    answered = loaded(runs / "moa").generate(TEXTS, 6, k=2, batch_size=batch_size)
    for text, found in zip(TEXTS, answered, strict=True):
        assert {reply.adapter for reply in found.replies} == set(found.choice.tasks)
        for reply in found.replies:
            assert reply.text == alone(runs / "moa" / "adapters" / reply.adapter, text, 6)


@pytest.mark.parametrize("decision", ["argmax", "soft"])
def test_where_blocks_decide_the_mixture_answers(decision: str, runs: Path) -> None:
    own = base()
    mixture, _ = attach_mixture(own, runs / "moa" / "adapters", decision)
    continue_ = generator(own, graphs=False)
    answerer = loaded(runs / "moa", decision=decision)
    for text, found in zip(TEXTS, answerer.generate(TEXTS, 6, batch_size=2), strict=True):
        prompt = prompt_tokens(own.tokenizer, text, 128).input_ids
        [new] = mixture.generate(continue_, [prompt], 6, mixture.logits([prompt]))
        [reply] = found.replies
        assert reply.text == str(own.tokenizer.decode(new, skip_special_tokens=True)).strip()
    with pytest.raises(LorachainsError, match=r"top_k is 2, but here all experts answer together"):
        answerer.generate(TEXTS, 2, k=2)
    with pytest.raises(LorachainsError, match=r"is no list of instructions"):
        answerer.select(TEXTS[0])


def test_a_mixture_by_token_answers_as_it_reads(runs: Path) -> None:
    """With a cache and in a batch; against the whole text read anew for each token."""
    own = base()
    mixture, about = attach_mixture(own, runs / "moe_lora" / "adapters")
    assert about.by_token
    for text, found in zip(TEXTS, loaded(runs / "moe_lora").generate(TEXTS, 4), strict=True):
        tokens = prompt_tokens(own.tokenizer, text, 128).input_ids
        start = len(tokens)
        for _ in range(4):
            with mixture.by_token(), torch.no_grad():
                tokens = [*tokens, int(own.model(torch.tensor([tokens])).logits[0, -1].argmax())]
            if tokens[-1] == own.tokenizer.eos_token_id:
                break
        assert found.choice.adapter == "mixture"
        assert found.replies[0].text == str(own.tokenizer.decode(tokens[start:], skip_special_tokens=True)).strip()
    with pytest.raises(LorachainsError, match=r"decision is 'vote', but .* decides for each token anew"):
        loaded(runs / "moe_lora", decision="vote")


def test_a_sampled_answer_depends_on_its_seed_alone(runs: Path) -> None:
    answerer = loaded(runs / "moa")
    whole = answerer.generate(TEXTS, 6, sampling=Sampling([5, 6, 7, 8, 9], temperature=2.0))
    [third] = answerer.generate(TEXTS[2:3], 6, sampling=Sampling([7], temperature=2.0))
    assert third.replies[0].text == whole[2].replies[0].text


def test_adapters_without_a_router_need_a_name(runs: Path) -> None:
    with pytest.raises(LorachainsError, match=r"has no router to choose among .* with expert= of free, one, two"):
        loaded(runs / "single_lora")
    with pytest.raises(LorachainsError, match=r"has no adapter 'three': choose one with expert= of free, one, two"):
        loaded(runs / "moa", expert="three")
    with pytest.raises(LorachainsError, match=r"expert=two answers everything, so that decision decides nothing"):
        loaded(runs / "single_lora", expert="two", decision="vote")
    for method in ("single_lora", "moa"):
        [found] = loaded(runs / method, expert="two").generate(TEXTS[:1], 6)
        assert found.choice.adapter == "two"
        assert found.replies[0].text == alone(runs / method / "adapters" / "two", TEXTS[0], 6)
