import math
import random
from collections import Counter

import pytest
from torchmetrics.functional.text import rouge_score

from lorachains.data.overlap import bleu, rouge_l, tokens
from lorachains.data.tasks import Example


def _scored(prediction: str, *references: str) -> float:
    return rouge_l(prediction, Example("t", "p", references[0], "f:1", references=references))


def test_english_is_scored_as_by_the_official_tokens() -> None:
    """Against torchmetrics with its own tokens, which are the official script's."""
    rng = random.Random(0)
    words = ["the", "Cat's", "sat", "on", "42", "mats,", "re-do", "A.B.", "—"]
    for _ in range(50):
        prediction, reference = (" ".join(rng.choices(words, k=rng.randrange(1, 9))) for _ in range(2))
        official = rouge_score(prediction, reference, rouge_keys="rougeL")["rougeL_fmeasure"]
        assert _scored(prediction, reference) == pytest.approx(float(official), abs=1e-6)


def test_chinese_is_scored_by_characters() -> None:
    assert tokens("我爱GPT4，不是吗？") == ["我", "爱", "GPT4", "不", "是", "吗"]
    assert _scored("矛盾", "矛盾") == 1
    assert _scored("我不爱猫", "我爱小猫。") == pytest.approx(2 * 3 / 8)  # 我爱猫 is common to 4 characters and 4


def test_the_nearest_reference_counts() -> None:
    assert _scored("a b", "c d", "a c") == pytest.approx(0.5)


@pytest.mark.parametrize(("prediction", "reference"), [("", "a"), ("?!", "a"), ("a", "?!")])
def test_nothing_in_common_with_nothing(prediction: str, reference: str) -> None:
    assert _scored(prediction, reference) == 0


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _by_papineni(pairs: list[tuple[list[str], list[str]]]) -> float:
    """Of all pairs of words together: `exp(min(0, 1 − r/c) + Σ_n log p_n / 4)`, with one reference each."""
    said, right = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    logs = 0.0
    for n in range(1, 5):
        common = sum((_grams(one, n) & _grams(other, n)).total() for one, other in pairs)
        logs += math.log(common / sum(_grams(one, n).total() for one, _ in pairs))
    return math.exp(min(0.0, 1 - right / said) + logs / 4)


def test_bleu_is_papinenis_over_the_corpus() -> None:
    """Chinese by characters; an answer too short for four words in a row counts in the others' company."""
    english = (
        ["the", "cat", "sat", "on", "the", "red", "mat", "today"],
        ["a", "cat", "sat", "on", "the", "red", "mat"],
    )
    chinese = (list("我们今天去公园散步"), list("我们今天去公园跑步吧"))
    pairs = [english, chinese, (["No"], ["No"])]
    said, right = (["".join(p[s]) if p is chinese else " ".join(p[s]) for p in pairs] for s in (0, 1))
    assert bleu(said, [[text] for text in right]) == pytest.approx(_by_papineni(pairs), abs=1e-6)
    assert bleu(["No"], [["No"]]) == 0


def test_bleu_takes_the_nearest_of_several_references() -> None:
    text = "one two three four five"
    assert bleu([text, text], [["nothing in common", text], [text]]) == 1
