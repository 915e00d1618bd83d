"""Scores are those of each text alone; free answers are the greedy ones."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lorachains.data import Example, Task
from lorachains.data.tasks import matches
from lorachains.data.tokens import collate_eval, encode_eval
from lorachains.evaluation import Prediction, generate, metric_name, predict, summarise
from lorachains.models import byte_tokenizer
from tests.data.stub import examples
from tests.tiny import ARCHITECTURES, tiny_model

TOKENIZER = byte_tokenizer()


def eval_batch(rows: list[Example]) -> Any:
    return collate_eval(encode_eval(TOKENIZER, rows, 0, 64), pad=0)


def task(name: str = "stub", metric: str = "accuracy") -> Task:
    return Task(name, lambda row: examples(1)[0], matches, metric)


def mean_log_likelihood(model: PreTrainedModel, prompt: str, answer: str) -> float:
    ids, start = TOKENIZER(prompt + answer).input_ids, len(TOKENIZER(prompt).input_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(torch.stack([logits[i - 1, ids[i]] for i in range(start, len(ids))]).mean())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_likeliest_candidate_wins(arch: str) -> None:
    """Against each candidate's text alone, without padding."""
    model = tiny_model(arch, torch.float64).eval()
    rows = examples(7, candidates=(" yes", " no", " it may well be"))
    for prediction, example in zip(predict(model, TOKENIZER, eval_batch(rows), [task()], 4), rows, strict=True):
        alone = [mean_log_likelihood(model, example.prompt, candidate) for candidate in example.candidates]
        assert prediction.candidates == pytest.approx(alone, rel=1e-9)
        assert prediction.prediction == example.candidates[alone.index(max(alone))]
        assert prediction.loss == pytest.approx(-alone[example.gold], rel=1e-9)
        assert prediction.tokens == len(example.answer)  # a byte a token
        assert prediction.score == float(prediction.prediction == example.answer)


def decoded(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True)).strip()


def greedy(model: PreTrainedModel, prompt: str, steps: int) -> list[int]:
    ids = TOKENIZER(prompt).input_ids
    for _ in range(steps):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-steps:]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_free_answers_are_greedy(arch: str) -> None:
    """Against an argmax loop over each prompt alone, without cache or padding.

    In float32: transformers' Bloom gives NaN for left-padded rows in float64.
    """
    model = tiny_model(arch).eval()
    rows = examples(5, candidates=())
    for prediction, example in zip(predict(model, TOKENIZER, eval_batch(rows), [task()], 6), rows, strict=True):
        expected = decoded(greedy(model, example.prompt, 6))
        assert prediction.prediction == expected
        assert prediction.candidates == []


def test_a_free_answer_ends_at_the_end_of_sequence_token() -> None:
    model = tiny_model("llama", torch.float64).eval()
    [example] = examples(1, candidates=())
    tokens = greedy(model, example.prompt, 6)
    end = next(t for t in tokens if t != tokens[0])
    short = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        eos_token=TOKENIZER.convert_ids_to_tokens(end),
    )
    prompts = collate_eval(encode_eval(TOKENIZER, [example], 0, 64), pad=0).prompts
    assert prompts is not None
    kept = decoded(tokens[: tokens.index(end)])
    assert generate(model, short, prompts, 6) == [kept]


def prediction(name: str, score: float, loss: float, tokens: int) -> Prediction:
    return Prediction(name, "", "", "", "", score, loss, tokens, [])


def test_a_summary_weighs_answers_alike_in_the_metric_and_tokens_alike_in_the_loss() -> None:
    rows = [prediction("stub", 1, 1.0, 1), prediction("stub", 0, 3.0, 3)]
    assert summarise(rows, [task()]) == {"accuracy": 0.5, "loss": 2.5}


def test_several_tasks_count_alike() -> None:
    rows = [prediction("a", 1, 1.0, 1), prediction("a", 1, 1.0, 1), prediction("b", 0, 3.0, 9)]
    assert summarise(rows, [task("a"), task("b")]) == {
        "accuracy": 0.5, "loss": 2.0, "a/accuracy": 1.0, "a/loss": 1.0, "b/accuracy": 0.0, "b/loss": 3.0,
    }  # fmt: skip


def test_a_mean_of_other_metrics_is_called_score() -> None:
    assert metric_name([task("a"), task("b", "f1")]) == "score"
    rows = [prediction("a", 1, 1.0, 1), prediction("b", 0.5, 1.0, 1)]
    assert summarise(rows, [task("a"), task("b", "f1")])["score"] == 0.75
