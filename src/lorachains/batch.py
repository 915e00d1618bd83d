"""The batch that every model sees: texts end to end in one stream of tokens, without padding between them.

Each text attends to itself alone (`segments`), and each block of `BLOCK` tokens belongs to one adapter, so that a bank
serves all adapters with one batched product. The last token of a text predicts nothing and is left out; candidates that
differ in their last token only therefore share one text. Where a batch is only scored, texts that begin alike also
share their beginning: it is a segment of its own, and what follows it in each of them attends to it as well (`keys`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lorachains.loads import Load, equal_ones, loads_of
from lorachains.prefixes import Family, families
from lorachains.segments import Segments, marked

IGNORED = -100
"""The label of a token that is no part of the answer (transformers' convention)."""
BLOCK = 16
"""With several adapters, each one has whole blocks of so many tokens, at least one; what is missing is padding."""


@dataclass(frozen=True)
class Tokens:
    """One text and where its answer is. `labels` is aligned with `input_ids` and IGNORED before the answer."""

    input_ids: list[int]
    labels: list[int]
    cut: bool = False
    """Whether the prompt lost tokens to fit `max_length`."""
    start: int = 0
    """The first token that an adapter serves; the base alone reads those before it (Activated LoRA)."""

    @cached_property
    def stream(self) -> np.ndarray:
        """What the model reads: all tokens but the last."""
        return np.array(self.input_ids[:-1], dtype=np.int64)

    @property
    def marked(self) -> np.ndarray:
        """The stream, with whether an adapter serves each token: see `segments.marked`."""
        return marked(self.stream, self.start)

    @cached_property
    def answer(self) -> np.ndarray:
        """The answer's tokens; the first is predicted from the token before it."""
        start = next((i for i, label in enumerate(self.labels) if i and label != IGNORED), len(self.labels))
        return np.array(self.labels[start:], dtype=np.int64)


@dataclass
class TokenBatch:
    """Texts in one stream.

    Attributes:
        position_ids: each token's place in its text.
        bounds: where each segment begins, and the end: `(segments + 1,)`. A segment is a text, a part of texts, or
            padding. An adapter's last one ends in padding that fills up its block.
        adapters: `(tokens / BLOCK,)` the adapter of each block, ascending; `None` if there is one adapter. Texts that
            none is to serve count as those of one more, here and in all that follows.
        ends: `(experts,)` where each adapter's tokens end; `None` if there is one adapter.
        positions: where in the stream the token *before* each answer token is.
        targets: the answer tokens; IGNORED where the batch was filled up (`filling`).
        candidate: which of the texts given each answer token belongs to.
        served: the adapter of each answer token.
        lengths: of the segments; known on the host, so that nobody has to ask the device, like all below.
        padding: how many tokens at each segment's end are padding, where it isn't padding as a whole.
        texts: which segments are texts.
        candidates: the number of texts given.
        loads: of each adapter; on all devices, if several share a batch.
        longest: no segment is longer, with what else it attends to.
        keys: where in the stream is what each segment attends to, segment by segment; `None` if each to itself alone.
        key_bounds: as `bounds`, of the keys.
        key_lengths: of each segment's keys.
        shares: if several devices share a batch, the part of each adapter's answer tokens that is in this one.
        active: whether an adapter serves each token; `None` if all are served.
        numbers: of each text's segment, that of its row (`numbered`); `None` if nobody asks for it.
        own: how many tokens come before those by which the batch was filled up; `None` if it wasn't.
    """

    input_ids: Int64[Tensor, " tokens"]
    position_ids: Int64[Tensor, " tokens"]
    bounds: Int32[Tensor, " bounds"]
    adapters: Int64[Tensor, " blocks"] | None
    ends: Int32[Tensor, " experts"] | None
    positions: Int64[Tensor, " answers"]
    targets: Int64[Tensor, " answers"]
    candidate: Int64[Tensor, " answers"]
    served: Int64[Tensor, " answers"]
    lengths: tuple[int, ...]
    padding: tuple[int, ...]
    texts: tuple[int, ...]
    candidates: int
    loads: tuple[Load, ...]
    longest: int
    keys: Int64[Tensor, " keys"] | None = None
    key_bounds: Int32[Tensor, " bounds"] | None = None
    key_lengths: tuple[int, ...] = ()
    shares: Float64[Tensor, " experts"] | None = None
    active: Bool[Tensor, " tokens"] | None = None
    numbers: Int64[Tensor, " segments"] | None = None
    own: Int64[Tensor, ""] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were given, without padding."""
        return sum(self.counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens were given of each adapter, without padding."""
        return tuple(load.tokens for load in self.loads)

    def to(self, device: torch.device | str, **kwargs: Any) -> "TokenBatch":
        """The batch on another device; Lightning calls it."""
        return self.map(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> "TokenBatch":
        """The batch in memory from which a copy to the GPU need not be waited for; a DataLoader calls it."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Any) -> "TokenBatch":
        """The batch with a function applied to each of its tensors."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The batch's tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def numbered(self, numbers: Sequence[int]) -> "TokenBatch":
        """The batch with a number for each of the texts given; of equal ones that are one segment it has one's."""
        segment = np.searchsorted(self.bounds.numpy(), self.positions.numpy(), side="right") - 1
        found = np.zeros(len(self.lengths), dtype=np.int64)
        found[segment] = np.array(numbers)[self.candidate.numpy()]
        return replace(self, numbers=torch.from_numpy(found))

    def padded(self) -> "PaddedBatch":
        """The texts one below the other, for architectures that can't read a stream. They must not share beginnings."""
        assert self.keys is None
        input_ids = self._rows(self.input_ids)
        width, device = input_ids.shape[1], self.input_ids.device
        starts = list(accumulate(self.lengths, initial=0))
        offset = torch.tensor([row * width - starts[i] for row, i in enumerate(self.texts)], device=device)
        segment = torch.bucketize(self.positions, self.bounds.long(), right=True) - 1
        row = torch.bucketize(segment, torch.tensor(self.texts, device=device))
        lengths = torch.tensor([self.lengths[i] - self.padding[i] for i in self.texts], device=device)
        blocks = torch.tensor([starts[i] // BLOCK for i in self.texts], device=device)
        return PaddedBatch(
            input_ids,
            attention_mask=(torch.arange(width, device=device) < lengths.unsqueeze(1)).long(),
            positions=self.positions + offset[row],
            adapters=None if self.adapters is None else self.adapters[blocks],
            active=None if self.active is None else self._rows(self.active).flatten(),
            numbers=None if self.numbers is None else self.numbers[torch.tensor(self.texts, device=device)],
        )

    def _rows(self, by_token: Tensor) -> Tensor:
        """The texts' tokens one below the other, zero where a text has none."""
        pieces = by_token.split(self.lengths)
        return pad_sequence([pieces[i][: self.lengths[i] - self.padding[i]] for i in self.texts], batch_first=True)


@dataclass
class PaddedBatch:
    """Texts one below the other, right-padded.

    Attributes:
        positions: `row · seq + position` of the token before each answer token.
        adapters: each row's; `None` if there is one adapter.
        active: `(rows · seq,)` whether an adapter serves each token; `None` if all are served.
        numbers: of each row, see `TokenBatch`.
    """

    input_ids: Int64[Tensor, "rows seq"]
    attention_mask: Int64[Tensor, "rows seq"]
    positions: Int64[Tensor, " answers"]
    adapters: Int64[Tensor, " rows"] | None
    active: Bool[Tensor, " tokens"] | None = None
    numbers: Int64[Tensor, " rows"] | None = None


def pack(
    texts: Sequence[Tokens], adapters: Sequence[int] | None = None, pad: int = 0, experts: int | None = None,
    share: bool = False,
) -> TokenBatch:  # fmt: skip
    """One batch of texts; those of one adapter side by side, equal ones of one adapter once.

    Args:
        adapters: each text's; `None` if the bank has one adapter.
        pad: the token that fills up blocks.
        experts: adapters of the bank; by default as many as `adapters` names.
        share: whether neighbouring texts of one adapter that begin alike share their beginning.
    """
    owners = [0] * len(texts) if adapters is None else list(adapters)
    experts = experts or max(owners) + 1
    stream = Segments()
    answers: list[tuple[int, np.ndarray]] = []  # the candidate, and where the tokens before its answer's are
    ends: list[int] = []
    for shared in equal_ones(texts, owners, experts):
        same = list(shared.values())
        read = [texts[equal[0]].marked for equal in same]
        for family in families(read) if share else [Family((i,), len(text)) for i, text in enumerate(read)]:
            for member, places in zip(family.members, stream.add_family(read, family), strict=True):
                answers += [(i, places[len(places) - len(texts[i].answer) :]) for i in same[member]]
        if adapters is not None and shared:
            stream.fill_up(-stream.size % BLOCK, pad)
        elif adapters is not None:
            stream.add_padding(BLOCK, pad)
        ends.append(stream.size)
    which = np.repeat([i for i, _ in answers], [len(places) for _, places in answers])
    blocks = np.repeat(np.arange(experts), np.diff(ends, prepend=0) // BLOCK)
    return TokenBatch(
        **stream.tensors(),
        adapters=None if adapters is None else torch.from_numpy(blocks),
        ends=None if adapters is None else torch.tensor(ends, dtype=torch.int32),
        positions=torch.from_numpy(np.concatenate([places for _, places in answers])),
        targets=torch.from_numpy(np.concatenate([texts[i].answer for i, _ in answers])),
        candidate=torch.from_numpy(which),
        served=torch.from_numpy(np.array(owners, dtype=np.int64)[which]),
        candidates=len(texts),
        loads=loads_of(texts, owners, experts),
    )
