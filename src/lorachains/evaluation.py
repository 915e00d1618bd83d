"""Scores examples: candidates by their log-likelihood, free answers by greedy generation."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorachains.batch import TokenBatch
from lorachains.data import EvalBatch, Example, Task
from lorachains.scoring import answer_losses, mean_per_group


@dataclass(frozen=True)
class Prediction:
    """What the model answered to one example.

    Attributes:
        score: the task's metric for this one, in [0, 1].
        loss: the mean negative log-likelihood of the gold answer's tokens, in nats.
        tokens: how many tokens the gold answer has.
        candidates: each candidate's mean log-likelihood a token, in nats; empty for a free answer.
    """

    task: str
    source: str
    prompt: str
    answer: str
    prediction: str
    score: float
    loss: float
    tokens: int
    candidates: list[float]

    def row(self) -> dict[str, Any]:
        """For `predictions.jsonl`."""
        return asdict(self)


@torch.no_grad()
def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: EvalBatch, tasks: Sequence[Task],
    max_new_tokens: int, route: Callable[[TokenBatch], None] = lambda batch: None,
) -> list[Prediction]:  # fmt: skip
    """Answers a batch of examples.

    A candidate's score is the mean log-likelihood of its tokens (Malladi et al. 2023, App. E), and the best wins.

    Args:
        max_new_tokens: the longest free answer.
        route: tells the model which adapter serves which row; called before each forward pass over other rows.
    """
    route(batch.scored)
    losses = answer_losses(model, batch.scored)
    per_row = mean_per_group(losses, batch.scored.answer_row, len(batch.scored.input_ids)).tolist()
    tokens = batch.scored.answer_row.bincount(minlength=len(per_row)).tolist()
    texts: list[str] = []
    if batch.prompts is not None:
        route(batch.prompts)
        texts = generate(model, tokenizer, batch.prompts, max_new_tokens)
    by_name = {task.name: task for task in tasks}
    predictions, start = [], 0
    for i, (example, choices, gold) in enumerate(
        zip(batch.examples, batch.choices.tolist(), batch.gold.tolist(), strict=True)
    ):
        scores = [-loss for loss in per_row[start : start + choices]]
        text = texts[i] if texts else example.candidates[scores.index(max(scores))]
        predictions.append(_prediction(example, by_name[example.task], text, scores, gold, tokens[start + gold]))
        start += choices
    return predictions


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: TokenBatch, max_new_tokens: int
) -> list[str]:
    """Greedy continuations of left-padded prompts, up to the end-of-sequence token, without surrounding white space."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    decoder: Any = model  # its `generate` has no types
    tokens = decoder.generate(prompts.input_ids, attention_mask=prompts.attention_mask, generation_config=config)
    new = tokens[:, prompts.input_ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def summarise(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> dict[str, float]:
    """The mean score under the metric's name, and the mean loss of an answer token in nats.

    With several tasks also each task's own as `<task>/<metric>`, and the overall ones are the means over tasks
    (a mixed set of metrics goes by the name "score").
    """
    parts: dict[str, dict[str, float]] = {}
    for task in tasks:
        if mine := [p for p in predictions if p.task == task.name]:
            answer_tokens = sum(p.tokens for p in mine)
            loss = sum(p.loss * p.tokens for p in mine) / answer_tokens
            parts[task.name] = {task.metric: fmean(p.score for p in mine), "loss": loss}
    overall = {
        metric_name(tasks): fmean(score_of(part) for part in parts.values()),
        "loss": fmean(p["loss"] for p in parts.values()),
    }
    if len(tasks) == 1:
        return overall
    return overall | {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}


def metric_name(tasks: Sequence[Task]) -> str:
    """The name under which `summarise` gives the tasks' mean score."""
    names = {task.metric for task in tasks}
    return names.pop() if len(names) == 1 else "score"


def score_of(summary: dict[str, float]) -> float:
    """The one number of a `summarise` of which more is better: its first metric, over all tasks."""
    return next(value for key, value in summary.items() if key != "loss")


def _prediction(example: Example, task: Task, text: str, scores: list[float], gold: int, tokens: int) -> Prediction:
    return Prediction(
        task=task.name, source=example.source, prompt=example.prompt, answer=example.answer, prediction=text,
        score=task.score(text, example), loss=-scores[gold], tokens=tokens,
        candidates=scores if example.candidates else [],
    )  # fmt: skip
