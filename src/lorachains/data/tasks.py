"""A task apart from its rows: how a row becomes a prompt with its answers, and how a prediction is graded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lorachains.data.rows import Row

SELECTOR = "selector"
"""The name of the task-selection LoRA, the paper's P."""


@dataclass(frozen=True)
class Example:
    """One prompt and its answer; `prompt + answer` is the text that the model reads.

    The joint between the two (a space or a newline) belongs to whichever of them the template puts it in.

    Attributes:
        source: where it comes from: "FILE:LINE", "hub:ID/CONFIG/SPLIT#ROW" or "reasoning_gym:TASK#SEED+ROW".
        candidates: all answers to choose from, `answer` among them, in the template's order; () for a free answer.
        references: the accepted answers; only `answer` where none are given.
        passage: what it asks about; examples that share one are in one split. "" for nothing but the prompt.
        letters: of the right options, where it is an exam question, whose answer is more than these; else "".
        shared: how many of the prompt's characters the base alone reads, before an adapter is activated (see
            `activation`). They are tokenised apart from what follows.
    """

    task: str
    prompt: str
    answer: str
    source: str
    candidates: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    passage: str = ""
    letters: str = ""
    shared: int = 0

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.answer,))

    @property
    def gold(self) -> int:
        """The index of the right candidate; 0 for a free answer."""
        return self.candidates.index(self.answer) if self.candidates else 0


def matches(prediction: str, example: Example) -> float:
    """1.0 where the prediction is one of the accepted answers but for surrounding white space, else 0.0."""
    return float(prediction.strip() in {reference.strip() for reference in example.references})


Metric = Callable[[str, Example], float]
"""A predicted answer and its example to a score in [0, 1]."""

CorpusMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""All predicted answers and what is accepted for each to a score in [0, 1]."""


@dataclass(frozen=True)
class Task:
    """What one task adds to its rows.

    Attributes:
        read: a row to an example; raises `LorachainsError` with the row's source where a field is missing or wrong.
        metrics: by their names in `metrics.json`, each the mean over examples. The first one selects the best epoch.
            Where there is none, no free answer is generated, and the loss selects.
        corpus_metrics: as `metrics`, of all examples' answers together, where that isn't the mean over them.
        stop: what ends a free answer, beside the end-of-sequence token; `None` for nothing.
        perplexity: whether its answers' perplexity is a result beside their loss.
        total: whether candidates are compared by their whole log-likelihoods, rather than by the mean of a token.
    """

    name: str
    read: Callable[[Row], Example]
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": matches})
    corpus_metrics: Mapping[str, CorpusMetric] = field(default_factory=dict)
    stop: str | None = None
    perplexity: bool = False
    total: bool = False

    @property
    def metric(self) -> str | None:
        """The name of the first metric, if there is one."""
        return next(iter(self.metrics), None)
