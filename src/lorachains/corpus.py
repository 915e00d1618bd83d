"""The base model pruned to the tokens of a run's own data (`model.prune_vocab`), and what that does to its perplexity.

A softmax over fewer tokens makes each of them likelier, so perplexities with and without pruning are no measure of one
another. The size of the effect is told for the untrained model.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from lorachains.bank import LoraBank
from lorachains.batch import Tokens
from lorachains.data.loaders import SPLITS
from lorachains.data.module import TaskDataModule
from lorachains.data.tokens import Serving, collate_train, padding_token
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel, prune
from lorachains.scoring import answer_losses

log = logging.getLogger(__name__)

SAMPLE = 32
"""Of so many validation rows of each run the perplexities are told."""


def prune_to(base: LanguageModel, runs: Sequence[TaskDataModule]) -> LanguageModel:
    """The base with the tokens of the runs' prompts and answers, of all splits, and what these need: see `prune`.

    Args:
        runs: set up with the base's own tokenizer; they have to be set up again with the new one, for `settle`.

    Raises:
        LorachainsError: see `prune`.
    """
    size, before = base.model.get_input_embeddings().get_parameter("weight").shape[0], _perplexity(base, runs)
    small = prune(base, {token for text in _texts(runs) for token in text.input_ids})
    return replace(small, facts={"vocabulary/tokens_unpruned": size, "vocabulary/perplexity_unpruned": before})


def settle(base: LanguageModel, before: Sequence[TaskDataModule], now: Sequence[TaskDataModule]) -> LanguageModel:
    """The pruned base, when it is known to cut each text of the data as the whole one did, and what pruning changed.

    Raises:
        LorachainsError: a text is cut otherwise.
    """
    assert base.pruned is not None
    kept = base.pruned.kept
    for old, new in zip(_texts(before), _texts(now), strict=True):
        if old.input_ids != [kept[token] for token in new.input_ids]:
            raise LorachainsError(
                f"model.prune_vocab is true, but the tokenizer can't be pruned exactly: set it to false "
                f"({base.tokenizer.decode(new.input_ids)!r:.80})"
            )
    facts = {**base.facts, "vocabulary/tokens": len(kept), "vocabulary/perplexity": _perplexity(base, now)}
    log.info(
        "vocabulary pruned from %d to %d tokens: the untrained model's perplexity of validation answers falls from "
        "%.4g to %.4g by that alone, so don't compare it with an unpruned model's; other tokens can't be generated",
        facts["vocabulary/tokens_unpruned"], len(kept),
        facts["vocabulary/perplexity_unpruned"], facts["vocabulary/perplexity"],
    )  # fmt: skip
    return replace(base, facts=facts)


def check_adapted(base: LanguageModel) -> None:
    """Raises `LorachainsError` where an adapter of a pruned model wouldn't fit the whole one."""
    if base.pruned and isinstance(base.model.get_output_embeddings(), LoraBank):
        raise LorachainsError(
            "adapter.target_modules takes in the output layer, which model.prune_vocab makes smaller than that of the "
            "model the adapter is for: leave it out"
        )


def _texts(runs: Sequence[TaskDataModule]) -> Iterator[Tokens]:
    for run in runs:
        for row in (row for split in SPLITS for row in run.rows(split)):
            yield from row.choices
            if row.prompt is not None:
                yield row.prompt


@torch.no_grad()
def _perplexity(base: LanguageModel, runs: Sequence[TaskDataModule]) -> float:
    """Of the gold answers' tokens, all alike."""
    base.model.eval()
    losses = []
    for run in runs:
        rows = run.rows("val")
        for row in rows[:: -(-len(rows) // SAMPLE)]:
            gold = replace(row, choices=[row.choices[row.example.gold]])
            batch = collate_train([(0, gold)], Serving(), padding_token(base.tokenizer))
            losses.append(answer_losses(base.model, batch.to(base.model.device)).double())
    return float(torch.cat(losses).mean().exp())
