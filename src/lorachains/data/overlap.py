"""What free answers have in common with their references, also in Chinese: ROUGE-L (Lin 2004), BLEU (Papineni 2002).

ROUGE-L is of each answer, and its mean over answers is told. BLEU is that of all answers together, as it is defined:
alone, an answer of fewer than four words has none. MoA (arXiv 2403.03432) names both and says of neither how words are
told apart; here Chinese characters are words.
"""

import re
from collections.abc import Sequence

from torchmetrics.functional.text import rouge_score, sacre_bleu_score

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


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a corpus, in [0, 1], by SacreBLEU's tokens for Chinese, which for other text are nearly its "13a" ones.

    Args:
        references: those accepted for each prediction.
    """
    return float(sacre_bleu_score(predictions, references, tokenize="zh"))


def tokens(text: str) -> list[str]:
    """Words and numbers, without punctuation; where a script puts no spaces between words, characters.

    Text of unaccented Latin letters gives the official script's tokens, without stemming.
    """
    return _TOKEN.findall(text)
