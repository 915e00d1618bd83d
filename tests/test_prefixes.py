"""Texts that begin alike are found, and nothing is lost or read more often than without."""

import numpy as np
import pytest

from lorachains.prefixes import LEAST, Family, families

PROMPT = list(range(100, 140))


def streams(*texts: list[int]) -> list[np.ndarray]:
    return [np.array(text, dtype=np.int64) for text in texts]


def test_a_prompt_is_shared_by_its_candidates() -> None:
    texts = streams([*PROMPT, 1, 2], [*PROMPT, 1, 3, 4], [*PROMPT, 5])
    assert families(texts) == [Family((0, 1, 2), len(PROMPT))]


def test_a_text_may_be_the_beginning_of_another() -> None:
    assert families(streams(PROMPT, [*PROMPT, 1])) == [Family((0, 1), len(PROMPT))]


def test_little_in_common_is_not_worth_it() -> None:
    few = PROMPT[: LEAST - 1]
    assert families(streams([*few, 1], [*few, 2])) == [Family((0,), LEAST), Family((1,), LEAST)]


def test_another_prompt_with_the_same_first_words_stays_apart() -> None:
    """To share those alone would undo what the candidates of one prompt share."""
    head = PROMPT[:LEAST]
    one, other = [*PROMPT, *range(60)], [*head, *range(500, 580)]
    found = families(streams([*one, 1], [*one, 2], [*other, 1], [*other, 2]))
    assert found == [Family((0, 1), len(one)), Family((2, 3), len(other))]


@pytest.mark.parametrize("seed", range(20))
def test_families_are_neighbours_with_that_beginning_and_save_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bases = [rng.integers(0, 3, 60) for _ in range(3)]
    texts = [np.concatenate([bases[rng.integers(3)][: rng.integers(10, 60)], rng.integers(0, 9, 5)]) for _ in range(30)]
    found = families(texts)
    assert [member for family in found for member in family.members] == list(range(30))
    read = 0
    for family in found:
        members = [texts[member] for member in family.members]
        assert all((text[: family.prefix] == members[0][: family.prefix]).all() for text in members)
        assert all(len(text) >= family.prefix for text in members)
        read += family.prefix + sum(len(text) - family.prefix for text in members)
    assert read <= sum(map(len, texts))
    assert (read == sum(map(len, texts))) == all(len(family.members) == 1 for family in found)
