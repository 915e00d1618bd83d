"""A rating is read where a reply gives one, and guessed nowhere."""

import pytest

from lorachains.judge import SCALES, Scale

POINTS, HELPFULNESS = SCALES["0-100"], SCALES["1-6"]


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("It does what was asked.\nRating: 5", 5),
        ("**Rating:** 4", 4),
        ("Rating: **3**.", 3),
        ("rating: [2]", 2),
        ("The rating is 6.", 6),
        ("评分：4", 4),
        ("Rating: 4/6", 4),
        ("Rating: 4 out of 6", 4),
        ("Rating: 4.0", 4),
        ("First I thought Rating: 2, but no.\nRating: 5", 5),
        ("<think>maybe 3?</think>\nRating: 1", 1),
        (" 6 ", 6),
        ("**5**", 5),
        ("5/6", 5),
        ("", None),
        ("a fine response", None),
        ("Rating: N", None),
        ("Rating: 0", None),
        ("Rating: 7", None),
        ("Rating: -3", None),
        ("Rating: 4.5", None),
        ("Rating: 4/10", None),
        ("Rating: 4 out of 5", None),
        ("Rating: 4-5", None),
        ("Rating: 4 or 5", None),
        ("Rating: 3 to 4", None),
        ("Rating: 45-50", None),
        ("Rating: 5\nRating: unclear 5 or Rating: 9", None),
        ("5 of the 6 sentences are right", None),
        ("4 5", None),
    ],
)
def test_helpfulness(reply: str, rating: int | None) -> None:
    assert HELPFULNESS.rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("Score: 85", 85), ("Rating: 0", 0), ("Rating: 100/100", 100), ("Rating: 101", None), ("Rating: 85/10", None)],
)
def test_points(reply: str, rating: int | None) -> None:
    assert POINTS.rating(reply) == rating


@pytest.mark.parametrize("scale", SCALES.values())
def test_the_prompt_holds_what_is_to_be_rated_and_only_that(scale: Scale) -> None:
    prompt = scale.prompt("Say {hi}", "hi {low}", None)
    assert "Say {hi}" in prompt
    assert "hi {low}" in prompt
    assert "right_answer" not in prompt
    assert "<right_answer>\nhello\n</right_answer>" in scale.prompt("Say hi", "hi", "hello")
    assert f"from {scale.low} to {scale.high}" in prompt
    assert scale.rating(prompt) is None  # an echo is no rating
