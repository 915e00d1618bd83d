"""The batch that every model sees: rows of tokens, and where the answers are in them."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

IGNORED = -100
"""The label of a token that is no part of the answer (transformers' convention)."""


@dataclass
class TokenBatch:
    """Rows of tokens, padded to one length.

    Attributes:
        task: the index of each row's task.
        positions: `row · seq + position` of the token *before* each answer token, row by row.
        targets: the answer tokens.
        answer_row: the row that each answer token is in.
        tokens: how many tokens are not padding; known on the host, so that nobody has to ask the device.
    """

    input_ids: Int64[Tensor, "rows seq"]
    attention_mask: Int64[Tensor, "rows seq"]
    task: Int64[Tensor, " rows"]
    positions: Int64[Tensor, " answers"]
    targets: Int64[Tensor, " answers"]
    answer_row: Int64[Tensor, " answers"]
    tokens: int

    @classmethod
    def of_labels(
        cls,
        input_ids: Int64[Tensor, "rows seq"],
        attention_mask: Int64[Tensor, "rows seq"],
        labels: Int64[Tensor, "rows seq"],
        task: Int64[Tensor, " rows"],
    ) -> "TokenBatch":
        """The batch whose answer tokens are those of `labels` that are not IGNORED; aligned with `input_ids`."""
        row, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return cls(
            input_ids, attention_mask, task,
            positions=row * labels.shape[1] + position, targets=labels[row, position + 1], answer_row=row,
            tokens=int(attention_mask.sum()),
        )  # fmt: skip

    @property
    def labels(self) -> Int64[Tensor, "rows seq"]:
        """The answer tokens where they stand in `input_ids`, IGNORED elsewhere."""
        labels = torch.full_like(self.input_ids, IGNORED)
        labels.view(-1)[self.positions + 1] = self.targets
        return labels

    def to(self, device: torch.device | str, **kwargs: Any) -> "TokenBatch":
        """The batch on another device; Lightning calls it."""
        moved = {f.name: getattr(self, f.name).to(device, **kwargs) for f in fields(self) if f.name != "tokens"}
        return type(self)(**moved, tokens=self.tokens)

    def first(self, rows: int) -> "TokenBatch":
        """The batch's first `rows` rows."""
        kept = self.answer_row < rows
        return TokenBatch(
            self.input_ids[:rows], self.attention_mask[:rows], self.task[:rows],
            self.positions[kept], self.targets[kept], self.answer_row[kept], int(self.attention_mask[:rows].sum()),
        )  # fmt: skip
