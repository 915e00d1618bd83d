"""Prompts and answers as the tokenizer reads them: as one text, or in the two parts that an activated adapter needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorachains.data.tasks import Example


@dataclass(frozen=True)
class Text:
    """A prompt with its answer as tokens.

    Attributes:
        ends: the character behind each token.
        head: how many are the tokenizer's own first tokens, such as BOS.
        start: the first token that is not of the prompt's shared part.
    """

    ids: list[int]
    ends: list[int]
    head: int
    start: int


def read(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Example, str]]) -> Iterator[Text]:
    """Each example with an answer. The prompt's shared part, if it has one, has no token in common with the rest."""
    wholes = [example.prompt + answer for example, answer in pairs]
    cuts = [example.shared or len(whole) for (example, _), whole in zip(pairs, wholes, strict=True)]
    settings: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
    firsts = tokenizer([whole[:cut] for whole, cut in zip(wholes, cuts, strict=True)], **settings).encodings
    rests = [whole[example.shared :] for (example, _), whole in zip(pairs, wholes, strict=True) if example.shared]
    behind = iter(tokenizer(rests, add_special_tokens=False, **settings).encodings if rests else ())
    for (example, _), encoding in zip(pairs, firsts, strict=True):
        special = encoding.special_tokens_mask
        stop = len(special) - special[::-1].index(0)  # some tokenizers close a text: it ends as its task says
        ids, ends, start = encoding.ids[:stop], [end for _, end in encoding.offsets[:stop]], 0
        if example.shared:
            rest, start = next(behind), stop
            ids, ends = ids + rest.ids, ends + [example.shared + end for _, end in rest.offsets]
        yield Text(ids, ends, special.index(0), start)
