"""Examples as token ids: which tokens are the answer, what is cut from a long prompt, and how rows become a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorachains.batch import IGNORED, TokenBatch
from lorachains.data.tasks import Example
from lorachains.errors import LorachainsError


@dataclass(frozen=True)
class Tokens:
    """One text. `labels` is aligned with `input_ids` (not shifted) and IGNORED outside the answer."""

    input_ids: list[int]
    labels: list[int]
    cut: bool  # whether the prompt lost tokens to fit `max_length`


@dataclass(frozen=True)
class Encoded:
    """An example with its texts: one for each candidate that is scored, or the gold answer alone.

    Attributes:
        task: index of the example's task in the data module's `tasks`.
        prompt: the prompt without an answer, to generate from; None where candidates are scored or where it trains.
    """

    example: Example
    task: int
    choices: list[Tokens]
    prompt: Tokens | None = None

    @property
    def length(self) -> int:
        """Tokens in the longest text."""
        return max(len(choice.input_ids) for choice in self.choices)

    @property
    def cut(self) -> bool:
        """Whether a text lost tokens to fit `max_length`."""
        return any(choice.cut for choice in self.choices)


class EvalBatch:
    """Examples with all their candidates. No dataclass: Lightning would step into the examples, and refuse frozen ones.

    Attributes:
        examples: the examples, whose candidates are never spread over two batches.
        scored: right-padded; the candidates of all examples, example by example; for a free answer the gold one alone.
        choices: (examples,) how many rows of `scored` each example has.
        gold: (examples,) index of the right one among the example's own.
        prompts: LEFT-padded prompts without an answer, to generate from; None where the examples have candidates.
    """

    def __init__(
        self,
        examples: list[Example],
        scored: TokenBatch,
        choices: Int64[Tensor, " examples"],
        gold: Int64[Tensor, " examples"],
        prompts: TokenBatch | None,
    ) -> None:
        self.examples = examples
        self.scored = scored
        self.choices = choices
        self.gold = gold
        self.prompts = prompts

    def to(self, device: torch.device | str, **kwargs: Any) -> "EvalBatch":
        """The batch on another device; Lightning calls it."""
        prompts = None if self.prompts is None else self.prompts.to(device, **kwargs)
        choices, gold = self.choices.to(device, **kwargs), self.gold.to(device, **kwargs)
        return EvalBatch(self.examples, self.scored.to(device, **kwargs), choices, gold, prompts)


def encode_train(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], task: int, max_length: int
) -> list[Encoded]:
    """Each example with its gold answer."""
    texts = _encode(tokenizer, [(example, example.answer) for example in examples], max_length)
    return [Encoded(example, task, [text]) for example, text in zip(examples, texts, strict=True)]


def encode_eval(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], task: int, max_length: int
) -> list[Encoded]:
    """Each example with all its candidates, or with its gold answer and the prompt to generate from."""
    answers = [(example, answer) for example in examples for answer in example.candidates or (example.answer,)]
    texts = iter(_encode(tokenizer, answers, max_length))
    prompts = iter(_encode(tokenizer, [(example, "") for example in examples if not example.candidates], max_length))
    return [
        Encoded(
            example,
            task,
            [next(texts) for _ in example.candidates or (example.answer,)],
            None if example.candidates else next(prompts),
        )
        for example in examples
    ]


def _encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Example, str]], max_length: int) -> list[Tokens]:
    """Prompt and answer tokenised as one text; a free answer gets the end-of-sequence token, which is a label too."""
    if not pairs:
        return []
    if not tokenizer.is_fast:
        raise LorachainsError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets: use a model with a fast tokenizer"
        )
    texts = [example.prompt + answer for example, answer in pairs]
    encodings = tokenizer(texts, return_offsets_mapping=True, verbose=False).encodings
    return [
        _tokens(example, answer, encoding, tokenizer.eos_token_id, max_length)
        for (example, answer), encoding in zip(pairs, encodings, strict=True)
    ]


def _tokens(example: Example, answer: str, encoding: Encoding, eos: int | None, max_length: int) -> Tokens:
    """Marks the answer and cuts the prompt. Raises `LorachainsError` where the answer alone is too long.

    A token belongs to the answer if it ends behind the prompt, so one that is merged over the joint does.
    """
    special = encoding.special_tokens_mask
    head = special.index(0)  # the tokenizer's own first tokens, such as BOS
    stop = len(special) - special[::-1].index(0)  # some tokenizers close a text themselves: it ends as its task says
    ids = encoding.ids[:stop]
    ends = [end for _, end in encoding.offsets[:stop]]
    labels = [token if end > len(example.prompt) else IGNORED for token, end in zip(ids, ends, strict=True)]
    if answer and not example.candidates:
        ids, labels = [*ids, _required(eos)], [*labels, _required(eos)]
    n_answer = sum(label != IGNORED for label in labels)
    if n_answer + max(head, 1) > max_length:  # at least one token has to stand before the answer, to predict it
        raise LorachainsError(
            f"{example.source}: the answer has {n_answer} tokens, too many for data.max_length={max_length}: raise it"
        )
    if len(ids) <= max_length:
        return Tokens(ids, labels, cut=False)
    start = len(ids) - (max_length - head)
    return Tokens(ids[:head] + ids[start:], labels[:head] + labels[start:], cut=True)


def _required(eos: int | None) -> int:
    if eos is None:
        raise LorachainsError(
            "the tokenizer has no end-of-sequence token, which free answers need: set tokenizer.eos_token"
        )
    return eos


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up short rows: the tokenizer's own, else its end-of-sequence token."""
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None else _required(tokenizer.eos_token_id)


def collate_train(rows: Sequence[Encoded], pad: int) -> TokenBatch:
    """The gold texts of the rows, right-padded."""
    return _collate([(row.task, row.choices[0]) for row in rows], pad)


def collate_eval(rows: Sequence[Encoded], pad: int) -> EvalBatch:
    """All texts of the rows; their prompts too, where they are free answers."""
    prompts = [(row.task, row.prompt) for row in rows if row.prompt is not None]
    return EvalBatch(
        examples=[row.example for row in rows],
        scored=_collate([(row.task, choice) for row in rows for choice in row.choices], pad),
        choices=torch.tensor([len(row.choices) for row in rows]),
        gold=torch.tensor([row.example.gold for row in rows]),
        prompts=_collate(prompts, pad, left=True) if prompts else None,
    )


def _collate(rows: Sequence[tuple[int, Tokens]], pad: int, left: bool = False) -> TokenBatch:
    width = max(len(tokens.input_ids) for _, tokens in rows)

    def stack(columns: Iterable[list[int]], fill: int) -> Int64[Tensor, "rows seq"]:
        return torch.tensor([_pad(column, width, fill, left) for column in columns])

    return TokenBatch.of_labels(
        input_ids=stack((tokens.input_ids for _, tokens in rows), pad),
        attention_mask=stack(([1] * len(tokens.input_ids) for _, tokens in rows), 0),
        labels=stack((tokens.labels for _, tokens in rows), IGNORED),
        task=torch.tensor([task for task, _ in rows]),
    )


def _pad(column: list[int], width: int, fill: int, left: bool) -> list[int]:
    padding = [fill] * (width - len(column))
    return padding + column if left else column + padding
