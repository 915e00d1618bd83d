"""Padded batches, whose tokens are counted."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from hf_peft.settings import is_best
from lorachains.batch import Tokens


@dataclass
class _Collator(DataCollatorForSeq2Seq):
    """Counts each batch's tokens on the host, where they are still lists."""

    tokens: list[int] = field(default_factory=list)

    def __call__(self, features: list[dict[str, list[int]]], return_tensors: str | None = None) -> Any:
        self.tokens.append(sum(len(row["input_ids"]) for row in features))
        return super().__call__(features, return_tensors)


def collator(tokenizer: PreTrainedTokenizerBase, settings: str) -> _Collator:
    """Pads on the right; "best" to a multiple of 8 tokens."""
    right = copy.copy(tokenizer)  # it may pad on the left, for generation, and then positions would have to be given
    right.padding_side = "right"
    return _Collator(right, pad_to_multiple_of=8 if is_best(settings) else None)


def columns(rows: Sequence[Tokens]) -> list[dict[str, list[int]]]:
    """Rows as a collator takes them."""
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
