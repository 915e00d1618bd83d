"""A name is found at the token that completes it, also where a character is spread over tokens."""

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lorachains.errors import LorachainsError
from lorachains.selection import Match, Names, StreamMatcher


def matched(names: list[str], tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> tuple[Match | None, int]:
    """The match, and how many tokens it took."""
    matcher = StreamMatcher(Names(names), tokenizer)
    for taken, token in enumerate(tokens, 1):
        if match := matcher.push(token):
            return match, taken
    return matcher.finish(), len(tokens)


@pytest.mark.parametrize(
    ("text", "name", "token", "taken"),
    [
        ("任务：情感分析，好", "情感分析", 20, 21),  # three bytes a character
        ("NER is it", "NER", 2, 3),
        ("a Text is", "Text", 5, 8),  # "Text " could go on, "Text i" can't
        ("a Text", "Text", 5, 6),
        ("a Text Matching", "Text Matching", 14, 15),
        ("情 感分析", None, None, 13),
    ],
)
def test_bytes_as_tokens(
    text: str, name: str | None, token: int | None, taken: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    match, needed = matched(["NER", "Text", "Text Matching", "情感分析"], tokenizer, tokenizer.encode(text))
    assert (match and match.name) == name
    assert (match and match.token) == token
    assert needed == taken
    if match:
        assert match.decided == needed - 1


def test_bytes_that_make_no_character_hide_no_name(tokenizer: PreTrainedTokenizerFast) -> None:
    broken = tokenizer.encode("情")[:2]
    match, _ = matched(["NER"], tokenizer, [*broken, *tokenizer.encode("NER.")])
    assert match == Match("NER", 4, 4)


def test_special_tokens_are_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    eos = tokenizer.eos_token_id
    match, _ = matched(["eos", "NER"], tokenizer, [eos, *tokenizer.encode("N"), eos, *tokenizer.encode("ER")])
    assert match == Match("NER", 4, 4)
    assert matched(["eos"], tokenizer, [eos, eos]) == (None, 2)
    assert matched(["eos"], tokenizer, []) == (None, 0)


def test_a_match_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    matcher = StreamMatcher(Names(["a", "b"]), tokenizer)
    first, second = tokenizer.encode("ab")
    assert matcher.push(first) == matcher.push(second) == matcher.finish() == Match("a", 0, 0)


def test_a_slow_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(LorachainsError, match="tokenizer Slow can't decode token by token"):
        StreamMatcher(Names(["a"]), Slow())  # type: ignore[arg-type]
