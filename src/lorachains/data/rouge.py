"""ROUGE-L of a free answer (Lin 2004), also of one in Chinese."""

import re

from torchmetrics.functional.text import rouge_score

from lorachains.data.tasks import Example

# Scripts without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer.
_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED += "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


def rouge_l(prediction: str, example: Example) -> float:
    """The F-measure of the longest common subsequence with the reference that is nearest, in [0, 1]."""
    # The default keys need nltk, which would fetch data.
    scores = rouge_score(
        [prediction], [list(example.references)], accumulate="best", normalizer=str.lower, tokenizer=tokens,
        rouge_keys="rougeL",
    )  # fmt: skip
    return float(scores["rougeL_fmeasure"])


def tokens(text: str) -> list[str]:
    """Words and numbers, without punctuation; where a script puts no spaces between words, characters.

    Text of unaccented Latin letters gives the official script's tokens, without stemming.
    """
    return _TOKEN.findall(text)
