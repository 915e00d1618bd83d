"""The letters that answer a multiple-choice question, taken from free text by rule (MoA, arXiv 2403.03432, Tab. 5).

The paper counts right answers and doesn't say how it reads them. Here a text answers with the letters right after
words that announce an answer, in Chinese or English, or with letters alone, or with the one option that it begins
with. Anything else is no answer, and neither are two that differ.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lorachains.errors import LorachainsError

_MARKS = r"""[\s:*_"'“”‘’「」《》【】\[\](){}$\\]"""

_ANNOUNCES = r"""(?i:
    \b (?:answers?|option|choice) \s+ (?:is|are|was|be) \b
  | \b answer [*_]* \s* : | (?m:^) [*_]* answer \b
  | \b I \s+ (?:would\s+|will\s+)? (?:choose|pick|select) \b
  | 答案 (?:应该|应当|应|就|该)?
  | 正确的? (?:选项|選項|选择|一项) (?:应该|应当|应|就|该)? (?:是|为|為|:)
  | (?<![不别可挑多单备如若]) (?:选择|選擇|选|選) (?![项項])
)"""

_BETWEEN = rf"""(?:
    {_MARKS} | (?i: \b (?:is|are|be|option|choice|letter|boxed|text|mathrm) \b) | 选项|選項|选|選|是|为|為
)*"""


@cache
def _patterns(options: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What finds an announced answer, an answer that is letters alone, and a line that begins with an option."""
    several = rf"(?> [{options}] (?: [ $]* (?:,|、|和|及|与|&|and)? [ $]* [{options}] )* ) (?![A-Za-z0-9'’-])"
    undecided = r"(?! [ ]* (?: or \b | 或 | 还是))"
    small = rf"[{options.lower()}] (?= {_MARKS}* (?:[.。,;]|\Z) )"
    letters = rf"({several} | {small}) {undecided}"
    return (
        re.compile(rf"{_ANNOUNCES} {_BETWEEN} {letters}", re.VERBOSE),
        re.compile(rf"{_MARKS}* {letters} {_MARKS}* [.。]? {_MARKS}*", re.VERBOSE),
        re.compile(rf"^ {_MARKS}* ([{options}]) \s* [.、:)] ", re.VERBOSE | re.MULTILINE),
    )


def answer_letters(text: str, options: str = "ABCDEFGH") -> str | None:
    """The letters that a text gives as its answer, sorted: "B", or "BD" for several; `None` if it gives none.

    Args:
        options: the letters that there are to choose from.
    """
    announced, alone, listed = _patterns(options)
    text = unicodedata.normalize("NFKC", text).strip()  # full-width letters and marks
    if match := alone.fullmatch(text):
        return _sorted(match[1])
    answers = {_sorted(match[1]) for match in announced.finditer(text)}
    if not answers and listed.match(text):
        answers = set(listed.findall(text))
    return answers.pop() if len(answers) == 1 else None


def _sorted(letters: str) -> str:
    return "".join(sorted(set(re.findall("[A-Z]", re.sub("and", "", letters).upper()))))


@dataclass(frozen=True)
class ExamScore:
    """How an exam went. Questions without a readable answer count as not right."""

    questions: int
    right: int
    unparsable: int

    @property
    def accuracy(self) -> float:
        """Right answers among all questions."""
        return self.right / self.questions


def exam_score(texts: Sequence[str], golds: Sequence[str], options: str = "ABCDEFGH") -> ExamScore:
    """Compares what each text answers with the right letters.

    Raises:
        LorachainsError: there is no question, or a right answer isn't made of the options.
    """
    if not golds:
        raise LorachainsError("there is no exam question to score: give at least one")
    for number, gold in enumerate(golds):
        if not gold or set(gold) - set(options):
            raise LorachainsError(f"question {number}: the right answer is {gold!r}, expected letters of {options}")
    answers = [answer_letters(text, options) for text in texts]
    right = sum(answer == _sorted(gold) for answer, gold in zip(answers, golds, strict=True))
    return ExamScore(len(golds), right, answers.count(None))
