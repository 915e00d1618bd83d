import random

import pytest
from torchmetrics.functional.text import rouge_score

from lorachains.data import Example
from lorachains.data.rouge import rouge_l, tokens


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
