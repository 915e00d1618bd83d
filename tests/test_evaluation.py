"""Scores are those of each text alone; free answers are the greedy ones."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, inf

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lorachains.data.tasks import Example, Task, matches
from lorachains.data.tokens import Serving, collate_eval, encode_eval
from lorachains.evaluation import Prediction, candidate_losses, generate, generator, predict, score_of, summarise
from lorachains.models import LanguageModel, byte_tokenizer
from lorachains.scoring import answer_losses
from tests.data.stub import examples
from tests.tiny import ARCHITECTURES, tiny_model

TOKENIZER = byte_tokenizer()


def continued(
    model: PreTrainedModel,
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerFast = TOKENIZER,
    stop: str | None = None,
) -> list[str]:
    """By up to six tokens."""
    base = LanguageModel(model, tokenizer, "random")
    texts = generate(generator(base, graphs=False, stop=stop), tokenizer, prompts, 6)
    return [text.strip() for text in texts]


def answers(model: PreTrainedModel, rows: list[Example]) -> list[Prediction]:
    """Of one run, in one batch."""
    batch = collate_eval([(0, row) for row in encode_eval(TOKENIZER, rows, 0, 64)], Serving(), pad=0)
    with torch.no_grad():
        losses = candidate_losses(batch.scored, answer_losses(model, batch.scored)).tolist()
    texts = continued(model, batch.prompts) if batch.prompts else []
    return predict(batch, losses, texts, [[task()]])


def task(name: str = "stub", metric: str = "accuracy") -> Task:
    return Task(name, lambda row: examples(1)[0], {metric: matches})


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
    for prediction, example in zip(answers(model, rows), rows, strict=True):
        alone = [mean_log_likelihood(model, example.prompt, candidate) for candidate in example.candidates]
        assert prediction.candidates == pytest.approx(alone, rel=1e-9)
        assert prediction.prediction == example.candidates[alone.index(max(alone))]
        assert prediction.loss == pytest.approx(-alone[example.gold], rel=1e-9)
        assert prediction.tokens == len(example.answer)  # a byte a token
        assert prediction.scores == {"accuracy": float(prediction.prediction == example.answer)}


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
    for prediction, example in zip(answers(model, rows), rows, strict=True):
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
    kept = decoded(tokens[: tokens.index(end)])
    assert continued(model, [TOKENIZER(example.prompt).input_ids], short) == [kept]


def test_a_free_answer_ends_at_its_tasks_stop() -> None:
    """Also where generation went on: tasks that end differently are answered in one batch."""
    rows = encode_eval(TOKENIZER, examples(2, candidates=()), 0, 64)
    batch = collate_eval([(0, row) for row in rows], Serving(), pad=0)
    lines = Task("stub", lambda row: examples(1)[0], stop="\n")
    texts = [" 1 \nand on", "\n22"]
    assert [p.prediction for p in predict(batch, [1.0, 1.0], texts, [[lines]])] == ["1", ""]
    assert [p.prediction for p in predict(batch, [1.0, 1.0], texts, [[task()]])] == ["1 \nand on", "22"]


def test_generation_ends_at_the_stop() -> None:
    model = tiny_model("llama", torch.float64).eval()
    [example] = examples(1, candidates=())
    tokens = greedy(model, example.prompt, 6)
    end = next(t for t in tokens[1:] if t != tokens[0] and TOKENIZER(TOKENIZER.decode([t])).input_ids == [t])
    stop = str(TOKENIZER.decode([end]))
    kept = decoded(tokens[: tokens.index(end) + 1])
    assert continued(model, [TOKENIZER(example.prompt).input_ids], stop=stop) == [kept]


def test_each_run_is_answered_by_itself() -> None:
    """Two runs with the same rows and tasks of their own, in one batch."""
    rows = encode_eval(TOKENIZER, examples(2), 0, 64)
    batch = collate_eval([(run, row) for run in (0, 1) for row in rows], Serving(runs=2), pad=0)
    losses = [1.0, 2.0, 1.0, 2.0, 4.0, 3.0, 3.0, 4.0]
    first, second = task("first"), Task("second", lambda row: examples(1)[0], {"f1": lambda text, example: 0.5})
    made = predict(batch, losses, [], [[first], [second]])
    assert [p.task for p in made] == ["first", "first", "second", "second"]
    assert [p.prediction for p in made] == [" yes", " yes", " no", " yes"]
    assert [p.loss for p in made] == [1.0, 2.0, 4.0, 4.0]
    assert [p.scores for p in made] == [{"accuracy": 1.0}, {"accuracy": 0.0}, {"f1": 0.5}, {"f1": 0.5}]
    assert [p.candidates for p in made][2:] == [[-4.0, -3.0], [-3.0, -4.0]]


def prediction(name: str, score: float, loss: float, tokens: int, metric: str = "accuracy") -> Prediction:
    return Prediction(name, "", "", "", "", {metric: score}, loss, tokens, [])


def test_a_summary_weighs_answers_alike_in_the_metric_and_tokens_alike_in_the_loss() -> None:
    rows = [prediction("stub", 1.0, 1.0, 1), prediction("stub", 0.0, 3.0, 3)]
    assert summarise(rows, [task()]) == {"accuracy": 0.5, "loss": 2.5}


def test_several_tasks_count_alike() -> None:
    rows = [prediction("a", 1.0, 1.0, 1), prediction("a", 1.0, 1.0, 1), prediction("b", 0.0, 3.0, 9)]
    assert summarise(rows, [task("a"), task("b")]) == {
        "accuracy": 0.5, "loss": 2.0, "a/accuracy": 1.0, "a/loss": 1.0, "b/accuracy": 0.0, "b/loss": 3.0,
    }  # fmt: skip


def test_a_mean_of_other_metrics_is_called_score() -> None:
    rows = [prediction("a", 1.0, 1.0, 1), prediction("b", 0.5, 1.0, 1, "f1")]
    assert summarise(rows, [task("a"), task("b", "f1")]) == {
        "score": 0.75, "loss": 1.0, "a/accuracy": 1.0, "a/loss": 1.0, "b/f1": 0.5, "b/loss": 1.0,
    }  # fmt: skip


def test_an_accuracy_and_a_loss_have_no_mean() -> None:
    rows = [prediction("a", 1.0, 1.0, 1), Prediction("b", "", "", "", None, {}, 2.0, 1, [])]
    found = summarise(rows, [task("a"), Task("b", lambda row: examples(1)[0], {})])
    assert found == {"loss": 1.5, "a/accuracy": 1.0, "a/loss": 1.0, "b/loss": 2.0}
    assert score_of(found) == -1.5


def test_all_metrics_are_told_and_the_first_one_selects() -> None:
    both = Task("a", lambda row: examples(1)[0], {"f1": matches, "exact_match": matches})
    rows = [replace(prediction("a", 0, 1.0, 1), scores={"f1": f1, "exact_match": 0.0}) for f1 in (0.5, 1.0)]
    summary = summarise(rows, [both])
    assert list(summary.items()) == [("f1", 0.75), ("exact_match", 0.0), ("loss", 1.0)]
    assert score_of(summary) == 0.75
    with_one = summarise([*rows, prediction("b", 0.25, 1.0, 1, "f1")], [both, task("b", "f1")])
    assert with_one == {
        "f1": 0.5, "loss": 1.0, "a/f1": 0.75, "a/exact_match": 0.0, "a/loss": 1.0, "b/f1": 0.25, "b/loss": 1.0,
    }  # fmt: skip


def test_what_is_of_all_answers_together_is_told_beside_the_means() -> None:
    def longest(said: Sequence[str], right: Sequence[Sequence[str]]) -> float:
        return max(map(len, said)) / max(len(text) for of_one in right for text in of_one)

    rows = [replace(prediction(name, 1.0, 1.0, 1), prediction="abc", also_right=["abcdef"]) for name in "aab"]
    tasks = [replace(task(name), corpus_metrics={"longest": longest}) for name in "ab"]
    assert list(summarise(rows[:2], tasks[:1]).items()) == [("accuracy", 1.0), ("longest", 0.5), ("loss", 1.0)]
    assert summarise(rows, tasks)["longest"] == 0.5


def test_perplexities_are_told_by_task_over_tasks_and_over_tokens() -> None:
    tasks = [Task(name, lambda row: examples(1)[0], {}, perplexity=True) for name in ("a", "b")]
    losses = [("a", 1, 1), ("a", 3, 3), ("b", 1, 4)]
    rows = [replace(prediction(name, 0, loss, tokens), scores={}) for name, loss, tokens in losses]
    assert summarise(rows[:2], tasks[:1]) == pytest.approx({"loss": 2.5, "perplexity": exp(2.5)})
    summary = summarise(rows, tasks)
    assert summary == pytest.approx({
        "loss": 1.75, "perplexity": (exp(2.5) + exp(1)) / 2, "perplexity_geometric": (exp(2.5) * exp(1)) ** 0.5,
        "loss_token_weighted": 14 / 8, "perplexity_token_weighted": exp(14 / 8),
        "a/loss": 2.5, "a/perplexity": exp(2.5), "b/loss": 1, "b/perplexity": exp(1),
    })  # fmt: skip
    assert score_of(summary) == -1.75  # nothing else selects


@pytest.mark.parametrize("loss", [1e4, inf])
def test_a_diverged_loss_is_an_infinite_perplexity(loss: float) -> None:
    rows = [replace(prediction("a", 0, loss, 1), scores={})]
    assert summarise(rows, [Task("a", lambda row: examples(1)[0], {}, perplexity=True)])["perplexity"] == inf


def test_where_nothing_is_graded_nothing_is_generated() -> None:
    model, rows = tiny_model("llama", torch.float64).eval(), examples(3, candidates=())
    batch = collate_eval([(0, row) for row in encode_eval(TOKENIZER, rows, 0, 64, prompts=False)], Serving(), pad=0)
    assert not batch.prompts
    with torch.no_grad():
        losses = candidate_losses(batch.scored, answer_losses(model, batch.scored)).tolist()
    made = predict(batch, losses, [], [[Task("stub", lambda row: rows[0], {})]])
    assert [(p.prediction, p.scores) for p in made] == [(None, {})] * 3
    assert [p.loss for p in made] == [p.loss for p in answers(model, rows)]
