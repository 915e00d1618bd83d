"""What a chain of LoRAs is worth: the answers' perplexity by the right expert, by the selected one, and by the base.

Of a task's test rows `perplexity` is exp of the mean negative log-likelihood (nats) of an answer token. It is Eq. 2 of
the paper (IEEE SPL 2024) with tokens in place of words: the paper writes N for "sentences" but sums over words, and a
model gives no probability to a word, only to its tokens. With K tokens in N words the word-level figure is the
token-level one to the power K / N. Means over tasks are arithmetic; `…_token_weighted` counts all tokens alike. A mean
lies between the tasks' own, so the paper's 2.78 (Table I) is none of them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from lorachains.answering.folder import BASE, ChainFile
from lorachains.answering.prompts import prompts_of
from lorachains.batch import pack
from lorachains.data.tasks import SELECTOR
from lorachains.data.tokens import Encoded, padding_token
from lorachains.evaluation import Prediction, candidate_losses
from lorachains.methods.selectors import generated_choices, scores_of
from lorachains.scoring import answer_losses
from lorachains.selection.report import Confusion, figures
from lorachains.selection.trie import probabilities, select

if TYPE_CHECKING:
    from lorachains.methods.chain_of_lora import ChainOfLora


def routed_metrics(method: "ChainOfLora", run: int, chain: ChainFile) -> tuple[dict[str, float], Confusion]:
    """A run's figures on its test rows, at what the adapters are now; and which tasks were selected.

    Args:
        method: which has just answered the test rows.
    """
    rows = [row for row in method.data.runs[run].rows("test") if row.task]
    scores = scores_of(method.predictions["test"][run], rows)
    gold = [row.task - 1 for row in rows]
    picked = select(probabilities(scores), threshold=chain.threshold)
    chosen = [best.names[0] if best.sure else -1 for best in picked]
    if chain.selection == "generate":
        prompts = prompts_of(method.base.tokenizer, chain)
        asking = [prompts.asking(row.example.prompt) for row in rows]
        chosen = generated_choices(method, run, chain.question, asking)
    confusion = Confusion(chain.tasks, gold, chosen)
    metrics = {f"test/{SELECTOR}/{key}": value for key, value in figures(confusion, scores).items()}
    return metrics | _likelihoods(method, run, chain, rows, chosen), confusion


def _likelihoods(
    method: "ChainOfLora", run: int, chain: ChainFile, rows: Sequence[Encoded], chosen: Sequence[int]
) -> dict[str, float]:
    """Of the rows' gold answers, by three ways to route."""
    answered = {(p.task, p.source): p for p in method.predictions["test"][run]}
    own = [answered[row.example.task, row.example.source] for row in rows]
    oracle, routed = [p.loss for p in own], [p.loss for p in own]
    fallback = chain.tasks.index(chain.fallback) if chain.fallback != BASE else -1
    served = [fallback if choice < 0 else choice for choice in chosen]
    astray = [i for i, row in enumerate(rows) if served[i] not in (row.task - 1, -1)]
    first = run * len(method.names) + 1
    for i, loss in zip(astray, _losses(method, rows, astray, [first + served[i] for i in astray]), strict=True):
        routed[i] = loss
    with _silent(method):
        base = _losses(method, rows, range(len(rows)), [first] * len(rows))
    for i in (i for i in range(len(rows)) if served[i] < 0):
        routed[i] = base[i]
    metrics: dict[str, float] = {}
    for way, losses in {"oracle": oracle, "routed": routed, "base": base}.items():
        metrics |= _means(f"test/{way}", own, losses)
    metrics["test/routing_loss"] = (
        metrics["test/routed/loss_token_weighted"] - metrics["test/oracle/loss_token_weighted"]
    )
    return metrics


def _means(prefix: str, own: Sequence[Prediction], losses: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    each, tokens = [], sum(p.tokens for p in own)
    for task in dict.fromkeys(p.task for p in own):
        mine = [(loss, p.tokens) for p, loss in zip(own, losses, strict=True) if p.task == task]
        each.append(sum(loss * n for loss, n in mine) / sum(n for _, n in mine))
        found[f"{prefix}/{task}/perplexity"] = _exp(each[-1])
    overall = sum(loss * p.tokens for p, loss in zip(own, losses, strict=True)) / tokens
    return found | {
        f"{prefix}/loss": fmean(each), f"{prefix}/perplexity": fmean(map(_exp, each)),
        f"{prefix}/loss_token_weighted": overall, f"{prefix}/perplexity_token_weighted": _exp(overall),
    }  # fmt: skip


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


@torch.no_grad()
def _losses(
    method: "ChainOfLora", rows: Sequence[Encoded], which: Sequence[int], adapters: Sequence[int]
) -> list[float]:
    """The mean loss of an answer token (nats) of some rows' gold answers, each by an adapter of the bank."""
    size, found = method.data.runs[0].eval_batch_size, list[float]()
    pad, device = padding_token(method.base.tokenizer), method.device
    for start in range(0, len(which), size):
        texts = [rows[i].choices[rows[i].example.gold] for i in which[start : start + size]]
        batch = pack(texts, adapters[start : start + size], pad, method.serving.bank).to(device)
        method.route(batch)
        with torch.compiler.set_stance("force_eager"):
            found += candidate_losses(batch, answer_losses(method.model, batch)).tolist()
    return found


@contextmanager
def _silent(method: "ChainOfLora") -> Iterator[None]:
    """Within, no adapter adds anything."""
    scales = {bank: bank.scaling.clone() for bank in method.chain.banks.values()}
    for bank in scales:
        bank.scaling.zero_()
    try:
        yield
    finally:
        for bank, scale in scales.items():
            bank.scaling.copy_(scale)
