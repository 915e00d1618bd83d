"""Which rows a run trains, validates and tests on: COLA (arXiv 2401.04151) §A.1, after MeZO (arXiv 2305.17333).

1000 random examples for training, 500 for validation and 1000 for testing. The papers don't say what they do where a
set is smaller: here training and validation shrink in proportion, and the test takes what there is.
"""

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from lorachains.data.tasks import Example, Task
from lorachains.errors import LorachainsError, check_positive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How many rows of each split, per task. Raises `LorachainsError` where one is no positive whole number."""

    train: int
    val: int
    test: int

    def __post_init__(self) -> None:
        for field in fields(self):
            check_positive(f"data.{field.name}_size", getattr(self, field.name))


@dataclass(frozen=True)
class Splits:
    """One task's examples. No prompt is in two of the splits, and no passage."""

    train: list[Example]
    val: list[Example]
    test: list[Example]


class Source(Protocol):
    """Where tasks and their rows come from."""

    def load(self, name: str, sizes: Sizes, seed: int) -> tuple[Task, Splits]:
        """The task `name` and its rows, the same ones for the same `seed`. Raises `LorachainsError` if unknown."""
        ...


def draw(
    name: str, official_train: Sequence[Example], official_val: Sequence[Example], sizes: Sizes, seed: int
) -> Splits:
    """Training and validation rows from the official train set, test rows from the official validation set.

    A train row with the prompt or passage of a validation row is left out, and rows with one prompt stay together.
    Where rows have passages, a share of these is set aside for validation.
    """
    tested = {text for example in official_val for text in (example.prompt, example.passage) if text}
    pool = [example for example in official_train if not {example.prompt, example.passage} & tested]
    if len(pool) < 2 or not official_val:
        raise LorachainsError(
            f"task '{name}' has {len(pool)} rows to train on and {len(official_val)} to test on: "
            "add rows to its files, at least 2 and 1"
        )
    n_train, n_val = _shrink(name, len(pool), sizes)
    set_aside = _set_aside(name, pool, n_val / (n_train + n_val), random.Random(f"{seed}/{name}/passages"))
    train, val = _fill(_groups(pool, random.Random(f"{seed}/{name}/train")), n_train, n_val, set_aside)
    test = random.Random(f"{seed}/{name}/test").sample(list(official_val), min(sizes.test, len(official_val)))
    if len(test) < sizes.test:
        log.info("%s: tested on all %d rows there are (data.test_size=%d)", name, len(test), sizes.test)
    return Splits(train, val, test)


def _shrink(name: str, available: int, sizes: Sizes) -> tuple[int, int]:
    wanted = sizes.train + sizes.val
    if available >= wanted:
        return sizes.train, sizes.val
    n_val = min(max(1, round(available * sizes.val / wanted)), available - 1)
    n_train = available - n_val
    log.info(
        "%s: %d rows, fewer than %d + %d: %d train, %d validate",
        name,
        available,
        sizes.train,
        sizes.val,
        n_train,
        n_val,
    )
    return n_train, n_val


def _set_aside(name: str, pool: Iterable[Example], share: float, rng: random.Random) -> set[str]:
    """So great a share of the passages, at random, but at least one, and not all."""
    passages = list(dict.fromkeys(example.passage for example in pool if example.passage))
    if len(passages) == 1:
        raise LorachainsError(f"task '{name}' has one passage to train and validate on: add rows about another one")
    count = min(max(1, round(len(passages) * share)), len(passages) - 1)
    return set(rng.sample(passages, count)) if passages else set()


def _groups(pool: Iterable[Example], rng: random.Random) -> list[list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in pool:
        groups.setdefault(example.prompt, []).append(example)
    shuffled = list(groups.values())
    rng.shuffle(shuffled)
    return shuffled


def _fill(
    groups: Iterable[list[Example]], n_train: int, n_val: int, set_aside: set[str]
) -> tuple[list[Example], list[Example]]:
    """Rows to train on, and to validate on: of the passages set aside, and without one what training left over."""
    train: list[Example] = []
    val: list[Example] = []
    for group in groups:
        passage = group[0].passage
        if passage not in set_aside and len(train) + len(group) <= n_train:
            train += group
        elif (not passage or passage in set_aside) and len(val) + len(group) <= n_val:
            val += group
    return train, val
