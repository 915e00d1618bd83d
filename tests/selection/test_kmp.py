"""The automata against Python's own search: the name that begins first, and of those the longest."""

import random
import re

import pytest

from lorachains.errors import LorachainsError
from lorachains.selection import Automaton, Found, Names
from lorachains.selection.kmp import Search


def test_an_automaton_ends_wherever_its_pattern_does() -> None:
    draw = random.Random(0)
    for _ in range(300):
        pattern = "".join(draw.choices("ab", k=draw.randint(1, 6)))
        text = "".join(draw.choices("ab", k=60))
        automaton, state, ends = Automaton(pattern), 0, []
        for place, character in enumerate(text, 1):
            state = automaton.step(state, character)
            assert text[:place].endswith(pattern[:state])
            ends += [place] if state == len(pattern) else []
        assert ends == [i for i in range(len(text) + 1) if text[:i].endswith(pattern)]


def leftmost_longest(names: list[str], text: str) -> Found | None:
    places = [(m.start(), -len(name), name) for name in names if (m := re.search(re.escape(name), text))]
    if not places:
        return None
    start, length, name = min(places)
    return Found(name, start - length)


def test_the_first_and_longest_name_is_found_however_the_text_is_cut() -> None:
    draw = random.Random(1)
    seen = set()
    for _ in range(2000):
        names = list({"".join(draw.choices("abc", k=draw.randint(1, 5))) for _ in range(draw.randint(1, 5))})
        text = "".join(draw.choices("abcd", k=draw.randint(0, 12)))
        expected = leftmost_longest(names, text)
        known = Names(names)
        assert known.find(text) == expected, (names, text)
        search, found = Search(known), None
        for character in text:
            found = found or search.read(character)
        assert (found or search.finish()) == expected
        seen.add(expected is None)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("text", "read", "at_the_end"),
    [
        ("Text", None, "Text"),  # a longer name may still come
        ("Text ", None, "Text"),
        ("Text a", "Text", "Text"),
        ("Text Mat", None, "Text"),
        ("Text Matching", "Text Matching", "Text Matching"),
        ("Text Mats", "Text", "Text"),
        ("Text Mats NER", "Text", "Text"),
        ("NER", "NER", "NER"),  # begins no other name
        ("no name", None, None),
        ("", None, None),
    ],
)
def test_a_name_waits_for_the_longer_one_around_it(text: str, read: str | None, at_the_end: str | None) -> None:
    search = Search(Names(["Text", "Text Matching", "NER"]))
    found = search.read(text)
    assert (found and found.name) == read
    found = found or search.finish()
    assert (found and found.name) == at_the_end


@pytest.mark.parametrize(
    ("rules", "text", "end"),
    [
        ({"ignore_case": True}, "is: text\n  MATCHING.", 19),
        ({}, "text matching", None),
        ({}, "is: Text\n  Matching.", 19),
        ({"spaces": "keep"}, "Text  Matching", None),
        ({"spaces": "keep"}, "Text Matching", 13),
        ({"spaces": "drop"}, "T e x tMatching", 15),
        ({}, "TextMatching", None),
    ],
)
def test_case_and_white_space(rules: dict[str, str | bool], text: str, end: int | None) -> None:
    found = Names(["Text Matching"], **rules).find(text)  # type: ignore[arg-type]
    assert (found and found.end) == end


def test_a_character_that_counts_as_two() -> None:
    assert Names(["Strasse"], ignore_case=True).find("die STRAßE") == Found("Strasse", 10)
    assert Names(["情感分析"]).find("任务：情感分析。") == Found("情感分析", 7)


@pytest.mark.parametrize(
    ("names", "rules", "says"),
    [
        ([], {}, "no task names"),
        (["NER", " "], {}, "a task's name is ' '"),
        (["NER", "ner"], {"ignore_case": True}, "'NER' and 'ner' are the same"),
        (["a  b", "a b"], {}, "are the same"),
        (["a"], {"spaces": "some"}, "spaces is 'some': choose collapse, drop, keep"),
    ],
)
def test_names_that_can_not_be_told_apart(names: list[str], rules: dict[str, str], says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        Names(names, **rules)  # type: ignore[arg-type]


def test_names_that_differ_in_what_counts() -> None:
    assert Names(["NER", "ner"]).find("the ner") == Found("ner", 7)
    assert Names(["a  b", "a b"], spaces="keep").find("a  b") == Found("a  b", 4)
