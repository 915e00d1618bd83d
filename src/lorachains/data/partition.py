"""Which records of an instruction set are trained, validated and tested on (Chain-of-LoRA: 60, 20 and 20%).

No text is in two of the splits, of whatever tasks its records are: a task selector must not have seen a test
instruction. A record's split depends on the seed and on the texts of its task (and of those who share its text), so
that tasks can be chosen, left out or added without moving the rows of the others.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from lorachains.data.instructions import Record
from lorachains.errors import LorachainsError

Parts = tuple[list[Record], list[Record], list[Record]]
"""Training, validation and test."""


def partition(records: Iterable[Record], shares: Sequence[float], seed: int) -> dict[str, Parts]:
    """Each task's records by split, in an order that the seed gives.

    Args:
        shares: of each task's records in training, validation and test.

    Raises:
        LorachainsError: a task is too small to have a record in each split, or the shares aren't three that make 1.
    """
    numbers = isinstance(shares, list | tuple) and all(type(share) in (int, float) for share in shares)
    if not numbers or len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise LorachainsError(f"data.split is {shares}: give three shares above 0 that make 1, as [0.6,0.2,0.2]")
    owned: dict[str, list[tuple[str, list[Record]]]] = defaultdict(list)
    parts: dict[str, Parts] = {}
    for key, group in same_text(records).items():
        counts = Counter(record.task for record in group)
        owned[min(counts, key=lambda task: (-counts[task], task))].append((_drawn(seed, key), group))
        parts |= {task: ([], [], []) for task in counts.keys() - parts.keys()}
    for groups in owned.values():
        total, before = sum(len(group) for _, group in groups), 0
        for _, group in sorted(groups, key=lambda drawn: drawn[0]):
            middle = (before + len(group) / 2) / total
            split = sum(middle > end for end in itertools.accumulate(shares[:2]))
            before += len(group)
            for record in group:
                parts[record.task][split].append(record)
    _check(parts)
    return dict(sorted(parts.items()))


def unseen(records: Iterable[Record], parts: Iterable[Parts], seed: int) -> list[Record]:
    """Those of some records that share no text with what is validated or tested on, in an order that the seed gives."""
    held = {text for _, val, test in parts for record in (*val, *test) for text in _texts(record)}
    return sorted((r for r in records if not held & _texts(r)), key=lambda r: (_drawn(seed, _own(r)), r.source))


def same_text(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records that have a text in common, be it the input alone or all that is asked; case and white space don't count.

    Returns:
        The groups, each by the text without the instruction (if there is another) that comes first in the alphabet: so
        that a split stays the same when instructions are reworded or left out.
    """
    above: dict[str, str] = {}

    def top(text: str) -> str:
        while (upper := above.setdefault(text, text)) != text:
            text = upper
        return text

    listed, groups = list(records), defaultdict[str, list[Record]](list)
    for record in listed:
        above[top(_plain(record.request))] = top(_own(record))
    for record in listed:
        groups[top(_own(record))].append(record)
    return {min(map(_own, group)): group for group in groups.values()}


def _texts(record: Record) -> set[str]:
    return {_own(record), _plain(record.request)}


def _own(record: Record) -> str:
    return _plain(record.input or record.instruction)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _drawn(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()


def _check(parts: dict[str, Parts]) -> None:
    for task, splits in parts.items():
        if not all(splits):
            raise LorachainsError(
                f"task '{task}' has {' + '.join(str(len(split)) for split in splits)} rows to train, validate and test "
                "on: add rows of other texts, or leave it out with data.exclude"
            )
