"""The name of a task in a text that is being generated, so that generation stops where it is found."""

from dataclasses import dataclass

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from lorachains.errors import LorachainsError
from lorachains.selection.kmp import Found, Names, Search


@dataclass(frozen=True)
class Match:
    """A task's name in a generated text.

    Attributes:
        token: index of the new token with which the name was complete.
        decided: index of the token with which no longer name around it could come any more.
    """

    name: str
    token: int
    decided: int


class StreamMatcher:
    """Looks for a name in the new tokens of one text as they come.

    Tokens are decoded as far as they make whole characters: a Chinese one may be spread over several. Special tokens
    are no text.

    Raises:
        LorachainsError: the tokenizer can't decode token by token.
    """

    def __init__(self, names: Names, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise LorachainsError(
                f"tokenizer {type(tokenizer).__name__} can't decode token by token: use a model with a fast tokenizer"
            )
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._search = Search(names)
        self._ends: list[int] = []  # how many characters there were after each token
        self._match: Match | None = None

    def push(self, token: int) -> Match | None:
        """Takes the next new token. The match, once it is sure, whatever comes after."""
        if self._match is None:
            text = self._stream.step(self._backend, token) or ""
            self._ends.append((self._ends[-1] if self._ends else 0) + len(text))
            self._match = self._told(self._search.read(text))
        return self._match

    def finish(self) -> Match | None:
        """The match when no token comes any more; `None` if no name was generated."""
        self._match = self._match or self._told(self._search.finish())
        return self._match

    def _told(self, found: Found | None) -> Match | None:
        if found is None:
            return None
        token = next(i for i, end in enumerate(self._ends) if end >= found.end)
        return Match(found.name, token, len(self._ends) - 1)
