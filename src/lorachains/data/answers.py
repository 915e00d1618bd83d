"""F1 and exact match of free answers, by the official rules of SQuAD (arXiv 1606.05250) and DROP (arXiv 1903.00161).

Of several accepted answers the best one counts.

DROP's evaluation takes lists of spans. Here an answer is one text with " and " between its spans, so it is cut there:
prediction and accepted answers alike, also where the "and" is part of a span.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from itertools import product

from lorachains.data.tasks import Example, Metric

_PUNCTUATION = str.maketrans("", "", string.punctuation)
BETWEEN_SPANS = " and "


def _best(score: Callable[[str, str], float]) -> Metric:
    """The metric that takes the best score over the accepted answers."""

    def metric(prediction: str, example: Example) -> float:
        return max(score(prediction, reference) for reference in example.references)

    return metric


def _plain(text: str) -> str:
    """In lower case, without punctuation, articles and needless white space."""
    return _without_articles(text.lower().translate(_PUNCTUATION))


def _without_articles(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _squad_f1(prediction: str, reference: str) -> float:
    said, right = _plain(prediction).split(), _plain(reference).split()
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def _squad_exact_match(prediction: str, reference: str) -> float:
    return float(_plain(prediction) == _plain(reference))


def _spans(answer: str) -> list[str]:
    return [_plain_with_numbers(span) for span in answer.split(BETWEEN_SPANS)]


def _plain_with_numbers(span: str) -> str:
    """As `_plain`, word by word, but with numbers as floats: "1,000" and "1000.0" are the same."""
    words = (_number(word) or _number(plain := word.translate(_PUNCTUATION)) or plain
             for word in re.split(" |-", span.lower()))  # fmt: skip
    return " ".join(filter(None, map(_without_articles, words)))


def _number(word: str) -> str | None:
    try:
        return str(float(word))
    except ValueError:
        return None


def _bag_f1(said: set[str], right: set[str]) -> float:
    """Over sets of words; 0 where the right one has numbers and none of them was said."""
    numbers = set(filter(_number, right))
    if numbers and not numbers & said:
        return 0.0
    return 2 * len(said & right) / (len(said) + len(right)) if said or right else 1.0


def _drop_f1(prediction: str, reference: str) -> float:
    """The mean over spans in their best alignment, to two digits; a span too many or too few counts as 0."""
    import networkx  # half a second, which only DROP needs

    said, right = ([set(span.split()) for span in _spans(text)] for text in (prediction, reference))
    pairs = networkx.Graph()
    for (i, one), (j, other) in product(enumerate(said), enumerate(right)):
        pairs.add_edge(("said", i), ("right", j), weight=_bag_f1(one, other))
    aligned = sum(pairs.edges[pair]["weight"] for pair in networkx.max_weight_matching(pairs))
    return round(aligned / max(len(said), len(right)), 2)


def _drop_exact_match(prediction: str, reference: str) -> float:
    said, right = _spans(prediction), _spans(reference)
    return float(len(said) == len(right) and set(said) == set(right))


SQUAD = {"f1": _best(_squad_f1), "exact_match": _best(_squad_exact_match)}
"""SQuAD's metrics."""

DROP = {"f1": _best(_drop_f1), "exact_match": _best(_drop_exact_match)}
"""DROP's metrics."""
