"""Selecting and answering with ordinary adapters, and with activated ones, which the prompt is read for once.

    python benchmarks/activated.py latency model=smollm2-135m tokens=64,256,1024 tasks=24 new=8 rows=1

Prints JSON: for requests of so many tokens and each of `method.activated=none|selector|all`, the median seconds of one
call that selects and answers, and of selecting alone, over `REPEATS`; and how many tokens the model reads (padding
included) before the first token of an answer. `all, read for each` is what `all` would take without the common reading;
`same_answers` is the share of answers that are the same with and without. One process, one bank of random adapters of
rank 8 on PEFT's default targets, exact scoring of all names. What activation costs in accuracy is not told here, but by
`make chain-of-lora-activated`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import torch
from command_line import run
from hydra.utils import instantiate
from measuring import Figures, load, settings
from transformers import PreTrainedTokenizerBase

from lorachains.answering.engine import Answerer
from lorachains.answering.folder import BASE, ChainFile
from lorachains.answering.prompts import prompts_of
from lorachains.chain import Chain
from lorachains.data.activation import ACTIVATED
from lorachains.data.tasks import SELECTOR
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel

REPEATS = 7
WORDS = ["hens", "legs", "count", "of", "the", "sum", "three", "town", "river", "letter", "word", "why", "how", "long"]
TEMPLATE = "{instruction}\nAnswer:"


def latency(
    name: str, tokens: Sequence[int] = (64, 256, 1024), tasks: int = 24, new: int = 8, rows: int = 1,
    random: bool = False,
) -> Figures:  # fmt: skip
    """Seconds and tokens read, by the length of the requests and by what is activated.

    Raises:
        LorachainsError: the architecture can't go on from a common reading, so that there is nothing to compare.
    """
    cfg = settings(name, random=random)
    base = load(cfg)
    base.model.eval()
    chain = Chain(base.model, instantiate(cfg.adapter), range(tasks + 2))
    for bank in chain.banks.values():
        bank.lora_B.data[:-1].normal_(std=0.02)  # the last one is the base, and adds nothing
    task_prompt = settings(name, "method=chain_of_lora").method.task_prompt
    found: Figures = {}
    for length in tokens:
        asked = requests(base.tokenizer, rows, length)
        sides = {mode: answerer(base, chain, tasks, task_prompt, mode) for mode in ACTIVATED}
        if not sides["all"].reuses:
            raise LorachainsError(f"{name} can't go on from a common reading: there is nothing to compare")
        sides["all, read for each"] = answerer(base, chain, tasks, task_prompt, "all")
        sides["all, read for each"].reuses = False
        each = {side: figures(one, asked, new) for side, one in sides.items()}
        texts = [of.pop("answers") for of in (each["all"], each["all, read for each"])]
        for of in each.values():
            of.pop("answers", None)
        found[str(length)] = each | {
            "same_answers": fmean(a == b for a, b in zip(*texts, strict=True)),
            "none / all": {key: each["none"][key] / each["all"][key] for key in each["all"]},
        }
    return {"rows": rows, "tasks": tasks, "new": new, "tokens": found}


def answerer(base: LanguageModel, chain: Chain, tasks: int, task_prompt: str, mode: str) -> Answerer:
    """A chain of the bank's adapters."""
    names = {f"{WORDS[i % len(WORDS)]} {i}": f"{WORDS[i % len(WORDS)]} {i}" for i in range(tasks)}
    told = ChainFile(base.name, names, task_prompt, TEMPLATE, 1 << 14, "exact", 0.0, BASE, None, mode)
    folders = {adapter: Path(adapter) for adapter in [SELECTOR, *names]}
    return Answerer(base, chain, folders, prompts_of(base.tokenizer, told), told)


def requests(tokenizer: PreTrainedTokenizerBase, rows: int, tokens: int) -> list[str]:
    """Random words of so many tokens."""
    draw = Random(0)
    texts = [" ".join(draw.choices(WORDS, k=tokens)) for _ in range(rows)]
    read = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [text[: ends[tokens - 1][1]] for text, ends in zip(texts, read["offset_mapping"], strict=True)]


def figures(one: Answerer, texts: list[str], new: int) -> dict[str, Any]:
    """What one side takes, and its answers."""
    with counted(one) as read:
        one.generate(texts, 1, batch_size=len(texts))
    answers = [answered.replies[0].text for answered in one.generate(texts, new, batch_size=len(texts))]
    whole = seconds(lambda: one.generate(texts, new, batch_size=len(texts)))
    select = seconds(lambda: one.select(texts, batch_size=len(texts)))
    return {"select_and_answer": whole, "select": select, "tokens_read": sum(read), "answers": answers}


@contextmanager
def counted(one: Answerer) -> Iterator[list[int]]:
    """How many tokens each pass within reads."""
    read: list[int] = []
    embeddings = one.base.model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
    try:
        yield read
    finally:
        hook.remove()


def seconds(work: Callable[[], object]) -> float:
    """The median of a few times, without the first two."""
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        work()  # its last act is to bring what it has found to the host
        times.append(time.perf_counter() - start)
    return median(times[2:])


if __name__ == "__main__":
    with torch.no_grad():
        run({"latency": latency})
