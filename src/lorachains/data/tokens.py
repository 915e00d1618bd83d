"""Examples as token ids: which tokens are the answer, what is cut from a long prompt, and how rows become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.data.tasks import Example
from lorachains.data.texts import Text, read
from lorachains.errors import LorachainsError

NO_TASK = -1


@dataclass(frozen=True)
class Encoded:
    """An example with its texts: one for each candidate that is scored, or the gold answer alone.

    Attributes:
        task: index of the example's task in the data module's `tasks`; NO_TASK of a training row without one.
        prompt: the prompt without an answer, to generate from; None where nothing is generated.
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
        runs: the run that each example is answered for.
        rows: the examples, whose candidates are never spread over two batches.
        scored: the candidates of all examples, example by example; for a free answer the gold one alone.
        prompts: the prompts without an answer, to generate from; empty where the examples have candidates.
        adapters: each prompt's; `None` if the bank has one.
        starts: each prompt's first token that its adapter serves; `None` if they serve all tokens.
    """

    def __init__(
        self, runs: list[int], rows: list[Encoded], scored: TokenBatch, prompts: list[list[int]],
        adapters: Int64[Tensor, " prompts"] | None, starts: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.runs = runs
        self.rows = rows
        self.scored = scored
        self.prompts = prompts
        self.adapters = adapters
        self.starts = starts

    def to(self, device: torch.device | str, **kwargs: Any) -> "EvalBatch":
        """The batch on another device; Lightning calls it."""
        adapters = None if self.adapters is None else self.adapters.to(device, **kwargs)
        return EvalBatch(self.runs, self.rows, self.scored.to(device, **kwargs), self.prompts, adapters, self.starts)


@dataclass(frozen=True)
class Serving:
    """Which adapter of a bank serves which row: each run has adapters of its own.

    Args:
        runs: trained side by side.
        experts: adapters of each run, one for all its tasks or one for each.
    """

    runs: int = 1
    experts: int = 1

    @property
    def bank(self) -> int:
        """Adapters of the bank."""
        return self.runs * self.experts

    def adapters(self, rows: Sequence[tuple[int, Encoded]]) -> list[int] | None:
        """The adapter of each row of a run; `None` if the bank has one.

        One more than there are, of a row without a task, where adapters have tasks of their own.
        """
        if self.bank == 1:
            return None
        if self.experts == 1:
            return [run for run, _ in rows]
        return [self.bank if row.task == NO_TASK else run * self.experts + row.task for run, row in rows]


class AnswerTooLong(LorachainsError):
    """An answer alone is longer than a text may be."""


def encode_train(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], task: int, max_length: int, drop: bool = False
) -> list[Encoded]:
    """Each example with its gold answer.

    Args:
        drop: whether to leave out examples whose answers are too long, rather than to raise `AnswerTooLong`.
    """
    texts = _encode(tokenizer, [(example, example.answer) for example in examples], max_length, drop)
    return [Encoded(example, task, [text]) for example, text in zip(examples, texts, strict=True) if text]


def encode_eval(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], task: int, max_length: int, drop: bool = False,
    prompts: bool = True,
) -> list[Encoded]:  # fmt: skip
    """Each example with all its candidates, or with its gold answer and the prompt to generate from.

    Args:
        drop: see `encode_train`.
        prompts: false where nothing is to be generated.
    """
    answers = [(example, answer) for example in examples for answer in example.candidates or (example.answer,)]
    texts = iter(_encode(tokenizer, answers, max_length, drop))
    free = [(example, "") for example in examples if prompts and not example.candidates]
    starts = iter(_encode(tokenizer, free, max_length))
    encoded = []
    for example in examples:
        choices = [next(texts) for _ in example.candidates or (example.answer,)]
        prompt = next(starts) if prompts and not example.candidates else None
        if len(fitting := [choice for choice in choices if choice]) == len(choices):
            encoded.append(Encoded(example, task, fitting, prompt))
    return encoded


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int, shared: int = 0) -> Tokens:
    """A prompt to generate from, encoded and cut as those of examples are."""
    [tokens] = _encode(tokenizer, [(Example("", prompt, "", "the prompt", shared=shared), "")], max_length)
    assert tokens is not None
    return tokens


def _encode(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Example, str]], max_length: int, drop: bool = False
) -> list[Tokens | None]:
    """Prompt and answer tokenised as one text; a free answer gets the end-of-sequence token, which is a label too."""
    if not pairs:
        return []
    if not tokenizer.is_fast:
        raise LorachainsError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets: use a model with a fast tokenizer"
        )
    encoded: list[Tokens | None] = []
    for (example, answer), text in zip(pairs, read(tokenizer, pairs), strict=True):
        try:
            encoded.append(_tokens(example, answer, text, tokenizer.eos_token_id, max_length))
        except AnswerTooLong:
            if not drop:
                raise
            encoded.append(None)
    return encoded


def _tokens(example: Example, answer: str, text: Text, eos: int | None, max_length: int) -> Tokens:
    """Marks the answer and cuts the prompt. Raises `AnswerTooLong` where the answer alone is.

    A token belongs to the answer if it ends behind the prompt, so one that is merged over the joint does.
    """
    ids, head = text.ids, text.head
    labels = [token if end > len(example.prompt) else IGNORED for token, end in zip(ids, text.ends, strict=True)]
    if answer and not example.candidates:
        ids, labels = [*ids, _required(eos)], [*labels, _required(eos)]
    n_answer = len(labels) - labels.count(IGNORED)
    if n_answer + max(head, 1) > max_length:  # at least one token has to stand before the answer, to predict it
        raise AnswerTooLong(
            f"{example.source}: the answer has {n_answer} tokens, too many for data.max_length={max_length}: raise it"
        )
    if len(ids) <= max_length:
        return Tokens(ids, labels, start=text.start)
    lost = len(ids) - max_length
    kept = head + lost
    start = max(head, text.start - lost) if text.start else 0
    return Tokens(ids[:head] + ids[kept:], labels[:head] + labels[kept:], True, start)


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


def prompt_of(row: Encoded) -> list[int]:
    """The tokens from which a row is answered."""
    if row.prompt is not None:
        return row.prompt.input_ids
    text = row.choices[0]
    return text.input_ids[: len(text.input_ids) - len(text.answer)]


def collate_train(rows: Sequence[tuple[int, Encoded]], serving: Serving, pad: int) -> TokenBatch:
    """The gold texts of the rows, each with its run. Those of no adapter are a group behind all others."""
    owners = serving.adapters(rows)
    groups = max([serving.bank, *(owner + 1 for owner in owners or ())])
    return pack([row.choices[0] for _, row in rows], owners, pad, groups)


def collate_eval(
    rows: Sequence[tuple[int, Encoded]], serving: Serving, pad: int, share: bool = False
) -> EvalBatch:  # fmt: skip
    """All texts of the rows, each with its run; their prompts too, where they are free answers.

    Args:
        share: see `pack`.
    """
    texts = [(run, row, choice) for run, row in rows for choice in row.choices]
    owners = serving.adapters([(run, row) for run, row, _ in texts])
    prompted = [(run, row) for run, row in rows if row.prompt is not None]
    adapters = serving.adapters(prompted)
    starts = [row.prompt.start for _, row in prompted if row.prompt is not None]
    return EvalBatch(
        runs=[run for run, _ in rows],
        rows=[row for _, row in rows],
        scored=pack([text for *_, text in texts], owners, pad, serving.bank, share),
        prompts=[row.prompt.input_ids for _, row in prompted if row.prompt is not None],
        adapters=None if adapters is None else torch.tensor(adapters, dtype=torch.int64),
        starts=starts if any(starts) else None,
    )
