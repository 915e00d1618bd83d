"""Scores examples: candidates by their log-likelihood, free answers by greedy generation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorachains.batch import TokenBatch
from lorachains.data.tasks import Task
from lorachains.data.tokens import Encoded, EvalBatch, padding_token
from lorachains.generation import Generator
from lorachains.models import LanguageModel
from lorachains.scoring import mean_per_group


@dataclass(frozen=True)
class Prediction:
    """What the model answered to one example.

    Attributes:
        prediction: the best candidate or what was generated; `None` where nothing was.
        scores: the task's metrics for this one, in [0, 1].
        loss: the mean negative log-likelihood of the gold answer's tokens, in nats.
        tokens: how many tokens the gold answer has.
        candidates: each candidate's mean log-likelihood a token (whole, where the task compares those), in nats; empty
            for a free answer.
        also_right: what is accepted beside `answer`.
    """

    task: str
    source: str
    prompt: str
    answer: str
    prediction: str | None
    scores: dict[str, float]
    loss: float
    tokens: int
    candidates: list[float]
    also_right: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For `predictions.jsonl`."""
        return asdict(self)


def predict(
    batch: EvalBatch, losses: Sequence[float], texts: Sequence[str], tasks: Sequence[Sequence[Task]]
) -> list[Prediction]:
    """What the model answered to a batch of examples.

    A candidate's score is the mean log-likelihood of its tokens (Malladi et al. 2023, App. E), or their sum where the
    task says so, and the best wins.

    Args:
        losses: the mean negative log-likelihood of each candidate's tokens, in nats, example by example.
        texts: the free answers, if any were generated; here they are cut at their task's `stop`.
        tasks: each run's.
    """
    predictions, start = [], 0
    for i, (run, row) in enumerate(zip(batch.runs, batch.rows, strict=True)):
        example, end = row.example, start + len(row.choices)
        task = tasks[run][row.task]
        scores = [
            -loss * (len(text.answer) if task.total else 1)
            for loss, text in zip(losses[start:end], row.choices, strict=True)
        ]
        best = example.candidates[scores.index(max(scores))] if example.candidates else None
        text = _until(texts[i], task.stop) if texts else best
        predictions.append(_prediction(row, task, text, scores, losses[start + example.gold]))
        start = end
    return predictions


def candidate_losses(batch: TokenBatch, losses: Float[Tensor, " answers"]) -> Float[Tensor, " candidates"]:
    """The mean negative log-likelihood of each candidate's tokens, in nats, of that of each answer token."""
    candidate, targets = (tensor.to(losses.device, non_blocking=True) for tensor in (batch.candidate, batch.targets))
    return mean_per_group(losses, candidate, batch.candidates, targets)


def generator(base: LanguageModel, graphs: bool, stop: str | None = None) -> Generator:
    """What continues prompts for a model and the banks in it.

    Args:
        graphs: whether decode steps are replayed as CUDA graphs.
        stop: a text whose token ends an answer as the end-of-sequence token does.
    """
    last = base.tokenizer.encode(stop or "", add_special_tokens=False)[-1:]
    ends = last if base.tokenizer.decode(last) == stop else []  # a part of the stop ends nothing
    eos = [token for token in (base.tokenizer.eos_token_id, *ends) if token is not None]
    return Generator(base.model, padding_token(base.tokenizer), eos, graphs)


def generate(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int,
    adapters: Int64[Tensor, " prompts"] | None = None, starts: Sequence[int] | None = None,
) -> list[str]:  # fmt: skip
    """Greedy continuations of prompts, up to the token that ends them. See `Generator` for the arguments."""
    new = generator(prompts, max_new_tokens, adapters, starts=starts)
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def summarise(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> dict[str, float]:
    """The means of the task's metrics, the first one first, and the mean loss of an answer token in nats; in between,
    what is of all answers together.

    With several tasks also each task's own as `<task>/<metric>`, and the overall ones are the means over tasks: of the
    metrics that all of them have, or, where they differ in their first, of those, by the name "score"; of none where
    some tasks have none.

    Where the tasks ask for it, each one's perplexity, the exponential of its loss, is there too, and of several tasks
    their mean, their geometric mean (`…_geometric`), and with all tokens counting alike (`…_token_weighted`).
    """
    parts: dict[str, dict[str, float]] = {}
    for task in tasks:
        if mine := [p for p in predictions if p.task == task.name]:
            answer_tokens = sum(p.tokens for p in mine)
            loss = sum(p.loss * p.tokens for p in mine) / answer_tokens
            parts[task.name] = _graded(mine, task) | {"loss": loss}
            if task.perplexity:
                parts[task.name]["perplexity"] = _exp(loss)
    if len({task.metric for task in tasks}) == 1:
        graded = list(parts.values())
        shared = [name for name in graded[0] if name not in LIKELIHOODS and all(name in part for part in graded)]
        overall = {name: fmean(part[name] for part in graded) for name in shared}
    elif all(task.metric for task in tasks):
        overall = {"score": fmean(score_of(part) for part in parts.values())}
    else:  # an accuracy and a loss have no mean
        overall = {}
    overall["loss"] = fmean(part["loss"] for part in parts.values())
    if all("perplexity" in part for part in parts.values()):
        overall["perplexity"] = fmean(part["perplexity"] for part in parts.values())
        if len(tasks) > 1:
            overall["perplexity_geometric"] = _exp(overall["loss"])
            overall |= _token_weighted(predictions)
    if len(tasks) == 1:
        return overall
    return overall | {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}


LIKELIHOODS = ("loss", "perplexity", "perplexity_geometric", "loss_token_weighted", "perplexity_token_weighted")
"""What `summarise` tells beside metrics."""


def score_of(summary: dict[str, float]) -> float:
    """The one number of a `summarise` of which more is better: its first metric over all tasks, else minus the loss."""
    key, value = next(iter(summary.items()))
    return -summary["loss"] if key in LIKELIHOODS else value


def _graded(mine: Sequence[Prediction], task: Task) -> dict[str, float]:
    """The task's metrics over its predictions."""
    means = {name: fmean(p.scores[name] for p in mine) for name in task.metrics}
    said = [p.prediction or "" for p in mine]
    right = [[p.answer, *p.also_right] for p in mine]
    return means | {name: metric(said, right) for name, metric in task.corpus_metrics.items()}


def _token_weighted(predictions: Sequence[Prediction]) -> dict[str, float]:
    loss = sum(p.loss * p.tokens for p in predictions) / sum(p.tokens for p in predictions)
    return {"loss_token_weighted": loss, "perplexity_token_weighted": _exp(loss)}


def _exp(loss: float) -> float:
    """Infinite, and no error, for a loss that has diverged."""
    return math.exp(loss) if loss < 700 else loss * math.inf


def _prediction(row: Encoded, task: Task, text: str | None, scores: list[float], loss: float) -> Prediction:
    example = row.example
    return Prediction(
        task=task.name, source=example.source, prompt=example.prompt, answer=example.answer, prediction=text,
        scores={} if text is None else {name: metric(text, example) for name, metric in task.metrics.items()},
        loss=loss, tokens=len(row.choices[example.gold].answer),
        candidates=scores if example.candidates else [],
        also_right=[text for text in example.references if text != example.answer],
    )  # fmt: skip


def _until(text: str, stop: str | None) -> str:
    """The text before `stop`, without surrounding white space."""
    return (text.split(stop)[0] if stop else text).strip()
