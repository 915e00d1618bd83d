"""Answers in, ratings out: nothing asked twice, nothing guessed, everything counted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

import pytest

from lorachains.answers import Answer
from lorachains.errors import LorachainsError
from lorachains.judge import SCALES, LocalModel, Rating, Reply, ReplyCache, rate, summarise
from lorachains.judge.rating import read_ratings
from lorachains.models import tiny

SCALE = SCALES["1-6"]


class StubJudge:
    """Refuses prompts with an r, and stops at those with an s."""

    identity = "stub"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def replies(self, prompts: Sequence[str]) -> Iterator[Reply]:
        for prompt in reversed(prompts):
            if "s" in prompt:
                raise LorachainsError("stopped")
            self.asked.append(prompt)
            yield Reply(prompt, f"Rating: {prompt[-1]}", refused="r" in prompt)


def test_each_prompt_is_asked_once_in_all(tmp_path: Path) -> None:
    judge, cache = StubJudge(), ReplyCache(tmp_path, "stub")
    first = list(rate(judge, ["a1", "b2", "a1", "r3"], cache))
    assert sorted(judge.asked) == ["a1", "b2", "r3"]
    judge.asked.clear()
    second = list(rate(judge, ["a1", "b2", "r3", "c4"], cache))
    assert judge.asked == ["c4", "r3"]  # what was refused is asked again
    assert {r.prompt: r.text for r in first}.items() < {r.prompt: r.text for r in second}.items()


def test_what_was_answered_before_a_stop_is_kept(tmp_path: Path) -> None:
    judge, cache = StubJudge(), ReplyCache(tmp_path, "stub")
    with pytest.raises(LorachainsError, match="stopped"):
        list(rate(judge, ["s", "b2", "a1"], cache))
    judge.asked.clear()
    assert len(list(rate(judge, ["b2", "a1"], cache))) == 2
    assert judge.asked == []


def test_a_judge_that_refuses_everything(tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match="the judge refused all 2 prompts, the last one with: Rating: 1"):
        list(rate(StubJudge(), ["r1", "r2"], ReplyCache(tmp_path, "stub")))


def test_replies_become_ratings_in_the_order_of_the_answers() -> None:
    answers = [Answer("t", prompt, "said", None, f"f:{i}") for i, prompt in enumerate(["a", "b", "a", "c"])]
    replies = [Reply("c", "Rating: 5", refused=True), Reply("b", "no idea"), Reply("a", "Rating: 2")]
    ratings = read_ratings(SCALE, answers, ["a", "b", "a", "c"], replies)
    assert [rating.outcome for rating in ratings] == ["rated", "unparsable", "rated", "refused"]
    assert [rating.rating for rating in ratings] == [2, None, 2, None]
    assert [rating.source for rating in ratings] == ["f:0", "f:1", "f:2", "f:3"]


def made(task: str, rating: int | None) -> Rating:
    return Rating(task, "f:1", "p", "a", "unparsable" if rating is None else "rated", rating, "")


def test_only_rated_answers_enter_the_means() -> None:
    values = [4, None, 6, 1]
    summary = summarise([made(task, value) for task, value in zip("xxyy", values, strict=True)])
    assert summary == {
        "judge/rows": 4, "judge/rated": 3, "judge/unparsable": 1, "judge/refused": 0,
        "judge/mean": pytest.approx(fmean([4, 6, 1])),
        "judge/standard_error": pytest.approx(stdev([4, 6, 1]) / 3**0.5),
        "x/mean": 4, "y/mean": 3.5,
    }  # fmt: skip
    nothing = summarise([made("x", None)])
    assert nothing["judge/mean"] is nothing["judge/standard_error"] is None
    assert "x/mean" not in nothing


def test_a_model_of_ones_own_replies_to_each_prompt_as_it_does_alone() -> None:
    base = tiny()
    prompts = ["rate this", "and", "this one too, please"]
    together = {r.prompt: r.text for r in LocalModel(base, 5, batch_size=2).replies(prompts)}
    assert together.keys() == set(prompts)
    for prompt in prompts:
        (reply,) = LocalModel(base, 5, batch_size=1).replies([prompt])
        assert reply == Reply(prompt, together[prompt])
    base.tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ '!' }}"
    (in_template,) = LocalModel(base, 5, 1).replies(["and"])
    base.tokenizer.chat_template = None
    (by_hand,) = LocalModel(base, 5, 1).replies(["[and]!"])
    assert in_template.text == by_hand.text
    with pytest.raises(LorachainsError, match="don't fit"):
        list(LocalModel(base, 5, 1).replies(["x" * 2000]))
    with pytest.raises(LorachainsError, match=r"local.batch_size is 0"):
        LocalModel(base, 5, 0)
