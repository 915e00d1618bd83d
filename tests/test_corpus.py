"""A run with `model.prune_vocab`, and what is left of it without."""

import logging

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from lorachains.corpus import check_adapted, prune_to, settle
from lorachains.data.module import TaskDataModule
from lorachains.errors import LorachainsError
from lorachains.inject import inject
from lorachains.models import LanguageModel
from lorachains.routing import Routing
from tests.data.stub import stub_module
from tests.models.test_pruning import _model, _tokenizer


def _data(base: LanguageModel) -> TaskDataModule:
    assert isinstance(base.tokenizer, PreTrainedTokenizerFast)
    module = stub_module(base.tokenizer, tasks=["stub", "free"])
    module.setup()
    return module


def _gold_loss(base: LanguageModel, data: TaskDataModule, kept: list[int] | None = None) -> float:
    """Of the validation rows, a text at a time, with the softmax over all or over some tokens."""
    losses = []
    for row in data.rows("val"):
        text = row.choices[row.example.gold]
        with torch.no_grad():
            logits = base.model(torch.tensor([text.input_ids])).logits[0, -len(text.answer) - 1 : -1]
        right = logits.gather(1, torch.from_numpy(text.answer).unsqueeze(1)).squeeze(1)
        losses.append((logits if kept is None else logits[:, kept]).logsumexp(1) - right)
    return float(torch.cat(losses).double().mean().exp())


def test_the_data_reads_the_same_and_the_perplexities_are_those_of_both_softmaxes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = _model("llama", True, _tokenizer())
    before = _data(base)
    full = _gold_loss(base, before)
    small = prune_to(base, [before])
    now = _data(small)
    with caplog.at_level(logging.INFO, "lorachains"):
        small = settle(small, [before], [now])
    assert small.pruned is not None
    whole = _model("llama", True, _tokenizer())
    assert small.facts == {
        "vocabulary/tokens_unpruned": len(whole.tokenizer) + 8,
        "vocabulary/tokens": len(small.pruned.kept),
        "vocabulary/perplexity_unpruned": pytest.approx(full, rel=1e-4),
        "vocabulary/perplexity": pytest.approx(_gold_loss(whole, before, list(small.pruned.kept)), rel=1e-4),
    }
    assert small.facts["vocabulary/perplexity"] < full
    assert "don't compare it with an unpruned model's" in caplog.text


def test_texts_that_are_cut_otherwise_are_refused() -> None:
    base = _model("llama", True, _tokenizer())
    before = _data(base)
    small = prune_to(base, [before])
    now = _data(small)
    now.rows("test")[0].choices[0].input_ids[0] += 1
    with pytest.raises(LorachainsError, match=r"model.prune_vocab is true, but the tokenizer can't be pruned exactly"):
        settle(small, [before], [now])


def test_an_adapted_output_layer_is_refused() -> None:
    for target in ("q_proj", "lm_head"):
        base = _model("llama", False, _tokenizer())
        small = prune_to(base, [_data(base)])
        inject(small.model, LoraConfig(target_modules=[target]), 1, Routing())
        if target == "lm_head":
            with pytest.raises(LorachainsError, match="takes in the output layer"):
                check_adapted(small)
        else:
            check_adapted(small)
