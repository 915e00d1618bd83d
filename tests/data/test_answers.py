"""Against torchmetrics' SQuAD, the official rules written out, and the best of all alignments by brute force."""

import random
from itertools import permutations

import pytest
from torchmetrics.functional.text import squad

from lorachains.data.answers import DROP, SQUAD
from lorachains.data.tasks import Example

_WORDS = [
    "the",
    "a",
    "An",
    "cat",
    "Cat.",
    "cats",
    "x-ray",
    "Él",
    "3",
    "3.0",
    "1,000",
    "''",
    "and",
    "(dog)",
    "\t",
    "U.S.",
]


def example(*references: str) -> Example:
    return Example("stub", "?", references[0], "stub:0", (), references)


def random_answer(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randrange(1, 7)))


def test_squad_is_torchmetrics() -> None:
    """But for answers without a word: F1 is 0 by the official script, and 1 by the library if both are empty."""
    rng, compared = random.Random(0), 0
    for _ in range(300):
        said, right = random_answer(rng), [random_answer(rng) for _ in range(rng.randrange(1, 4))]
        if any(SQUAD["exact_match"]("", example(text)) for text in (said, *right)):
            continue
        theirs = squad(
            {"prediction_text": said, "id": "0"},
            {"answers": {"text": right, "answer_start": [0] * len(right)}, "id": "0"},
        )
        for name, metric in SQUAD.items():
            assert metric(said, example(*right)) == pytest.approx(float(theirs[name]) / 100, abs=1e-6)
        compared += 0 < SQUAD["f1"](said, example(*right)) < 1
    assert compared > 50


@pytest.mark.parametrize(
    ("said", "right", "f1", "exact"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 2 / 3, 0),
        ("Denver Denver", ["Denver Broncos"], 1 / 2, 0),  # a word counts as often as in both
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California"], 4 / 5, 0),  # the best of the accepted
        ("x-ray", ["xray"], 1, 1),
        ("3", ["3.0"], 0, 0),  # no numbers: "30" without its point
        ("", ["cat"], 0, 0),
        ("the", ["a"], 0, 1),  # without a word in common
    ],
)
def test_squad_by_hand(said: str, right: list[str], f1: float, exact: float) -> None:
    assert [metric(said, example(*right)) for metric in SQUAD.values()] == pytest.approx([f1, exact])


@pytest.mark.parametrize(
    ("said", "right", "f1", "exact"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0.67, 0),  # to two digits
        ("Denver Denver", ["Denver Broncos"], 0.67, 0),  # sets of words
        # numbers are compared as numbers
        ("3", ["3.0"], 1, 1),
        ("40,543", ["40543"], 1, 1),
        (".5", ["0.5"], 1, 1),
        ("$5", ["5"], 1, 1),
        ("58-yard", ["58"], 0.67, 0),
        ("9 yards", ["8 yards"], 0, 0),  # the right answer has a number, which wasn't said
        ("yards", ["8 yards"], 0, 0),
        ("8 yards", ["yards"], 0.67, 0),  # but not the other way round
        ("8 feet", ["8 yards"], 0.5, 0),
        ("x-ray", ["x ray"], 1, 1),  # a hyphen is a gap between words
        # spans are aligned
        ("Steve Slaton and Jacoby Jones", ["Jacoby Jones and Steve Slaton"], 1, 1),
        ("Jacoby Jones", ["Jacoby Jones and Steve Slaton"], 0.5, 0),  # one too few
        ("Jones and Slaton and Brown", ["Slaton and Jones"], 0.67, 0),  # one too many
        ("Steve and Jones", ["Jacoby Jones and Steve Slaton"], 0.67, 0),
        ("26-yard and 33-yard", ["26-yard and 34-yard"], 0.5, 0),
        ("a cat and cat", ["cat and cat"], 1, 1),
        # the best of the accepted answers counts
        ("54", ["54-yard", "47", "54"], 1, 1),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_drop_by_the_official_rules(said: str, right: list[str], f1: float, exact: float) -> None:
    assert [metric(said, example(*right)) for metric in DROP.values()] == [f1, exact]


def test_spans_are_aligned_in_the_best_way() -> None:
    """Against all alignments, of the F1 of each pair alone."""
    rng, partial = random.Random(0), 0
    words = [word for word in _WORDS if word != "and"]
    for _ in range(150):
        said, right = ([" ".join(rng.choices(words, k=2)) for _ in range(rng.randrange(1, 5))] for _ in range(2))
        fewer, more = sorted((said, right), key=len)
        best = max(
            sum(
                _exact_f1(*((one, other) if fewer is said else (other, one)))
                for one, other in zip(fewer, chosen, strict=True)
            )
            for chosen in permutations(more, len(fewer))
        )
        f1 = DROP["f1"](" and ".join(said), example(" and ".join(right)))
        assert f1 == pytest.approx(best / len(more), abs=0.0051)
        partial += 0 < f1 < 1
    assert partial > 50


def _exact_f1(said: str, right: str) -> float:
    """Of two words each, so that rounding hides nothing: 0, 1/2, 2/3 or 1."""
    rounded = DROP["f1"](said, example(right))
    return 2 / 3 if rounded == 0.67 else rounded
