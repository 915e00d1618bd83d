"""Answers to ratings: asks a judge for what its cache doesn't hold, reads the replies, counts."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal, Protocol

from lorachains.answers import Answer
from lorachains.errors import LorachainsError
from lorachains.judge.cache import ReplyCache
from lorachains.judge.scales import Scale


@dataclass(frozen=True)
class Reply:
    """What came back for one prompt. One that the judge refuses to answer is not kept in the cache."""

    prompt: str
    text: str
    refused: bool = False


class Judge(Protocol):
    """Something that answers prompts."""

    @property
    def identity(self) -> str:
        """All that a reply depends on, beside the prompt."""

    def replies(self, prompts: Sequence[str]) -> Iterator[Reply]:
        """One reply to each of different prompts, in the order in which they come."""


@dataclass(frozen=True)
class Rating:
    """A rated answer. `rating` is `None` where the judge refused, or where its reply holds no rating."""

    task: str
    source: str
    prompt: str
    prediction: str
    outcome: Literal["rated", "unparsable", "refused"]
    rating: int | None
    reply: str


def rate(judge: Judge, prompts: Sequence[str], cache: ReplyCache) -> Iterator[Reply]:
    """A reply to each different prompt, from the cache or from the judge; what the judge says is kept at once.

    Raises:
        LorachainsError: the judge refuses every prompt.
    """
    missing, different = [], dict.fromkeys(prompts)
    for prompt in different:
        if (known := cache.get(prompt)) is None:
            missing.append(prompt)
        else:
            yield Reply(prompt, known)
    refused = 0
    for reply in judge.replies(missing):
        if reply.refused:
            refused += 1
        else:
            cache.put(reply.prompt, reply.text)
        if refused == len(different):
            raise LorachainsError(f"the judge refused all {refused} prompts, the last one with: {reply.text}")
        yield reply


def read_ratings(
    scale: Scale, answers: Sequence[Answer], prompts: Sequence[str], replies: Iterable[Reply]
) -> list[Rating]:
    """The ratings in the replies, answer by answer."""
    by_prompt = {reply.prompt: reply for reply in replies}
    return [_rating(scale, answer, by_prompt[prompt]) for answer, prompt in zip(answers, prompts, strict=True)]


def _rating(scale: Scale, answer: Answer, reply: Reply) -> Rating:
    value = None if reply.refused else scale.rating(reply.text)
    outcome: Literal["rated", "unparsable", "refused"] = "unparsable" if value is None else "rated"
    return Rating(
        task=answer.task, source=answer.source, prompt=answer.prompt, prediction=answer.prediction,
        outcome="refused" if reply.refused else outcome, rating=value, reply=reply.text,
    )  # fmt: skip


def lines(ratings: Iterable[Rating]) -> str:
    """For `ratings.jsonl`."""
    return "".join(json.dumps(asdict(rating), ensure_ascii=False) + "\n" for rating in ratings)


def summarise(ratings: Sequence[Rating]) -> dict[str, Any]:
    """Counts of outcomes, the mean rating with its standard error, and each task's mean.

    Only rated answers enter a mean; it is `None` where there are none. The standard error is that of independent rows.
    """
    values = [rating.rating for rating in ratings if rating.rating is not None]
    by_task: dict[str, list[int]] = defaultdict(list)
    for rating in ratings:
        if rating.rating is not None and rating.task:
            by_task[rating.task].append(rating.rating)
    counts = {what: sum(r.outcome == what for r in ratings) for what in ("rated", "unparsable", "refused")}
    return {
        "judge/rows": len(ratings),
        **{f"judge/{what}": count for what, count in counts.items()},
        "judge/mean": fmean(values) if values else None,
        "judge/standard_error": stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
        **{f"{task}/mean": fmean(values) for task, values in sorted(by_task.items())},
    }
