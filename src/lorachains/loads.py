"""How much the texts of a batch ask of each adapter: what speed and FLOPs are counted from, known on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorachains.batch import Tokens


@dataclass(frozen=True)
class Load:
    """What one adapter has to do, as if it were trained alone and on one device.

    Attributes:
        tokens: given, without padding.
        padded: what they would be with all texts padded to the longest, as HF's Trainer counts them.
        lengths: in tokens, of the texts that the model reads: without their last token, and equal ones once.
        answers: answer tokens.
    """

    tokens: int
    padded: int
    lengths: tuple[int, ...]
    answers: int


def loads_of(texts: "Sequence[Tokens]", adapters: Sequence[int] | None, experts: int) -> tuple[Load, ...]:
    """Each adapter's load.

    Args:
        adapters: each text's; `None` if the bank has one adapter.
        experts: adapters of the bank.
    """
    return tuple(_load(texts, same) for same in equal_ones(texts, adapters or [0] * len(texts), experts))


def equal_ones(texts: "Sequence[Tokens]", adapters: Sequence[int], experts: int) -> list[dict[bytes, list[int]]]:
    """Each adapter's texts, by what the model reads of them."""
    by_adapter: list[dict[bytes, list[int]]] = [{} for _ in range(experts)]
    for i, (text, adapter) in enumerate(zip(texts, adapters, strict=True)):
        by_adapter[adapter].setdefault(text.marked.tobytes(), []).append(i)
    return by_adapter


def _load(texts: "Sequence[Tokens]", same: Mapping[bytes, list[int]]) -> Load:
    given = [texts[i] for equal in same.values() for i in equal]
    sizes = [len(text.input_ids) for text in given]
    return Load(
        tokens=sum(sizes),
        padded=len(sizes) * max(sizes, default=0),
        lengths=tuple(len(texts[equal[0]].stream) for equal in same.values()),
        answers=sum(len(text.answer) for text in given),
    )
