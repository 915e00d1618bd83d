"""Latency of selecting and answering: ordinary adapters beside activated ones, in one process on one model.

    python benchmarks/activated.py model=smollm2-135m tasks=8 words=400 new=8 rows=1
    python benchmarks/activated.py none=RUN selector=RUN all=RUN

Prints JSON. Seconds are medians of `REPEATS` over random instructions of so many words, with random adapters of rank 8
on PEFT's default targets: `none` reads an instruction for the selector and for the expert, `all` once for both. With
run folders of chains trained alike but for `method.activated`, what their `metrics.json` tell of the test rows is there
too: what activation costs in accuracy and perplexity.
"""

import json
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra.utils import instantiate
from speed import DEVICE, load, settings

from lorachains.answering.engine import Answerer
from lorachains.answering.folder import BASE, ChainFile
from lorachains.chain import Chain
from lorachains.data.activation import ACTIVATED
from lorachains.data.selector import SELECTOR
from lorachains.run_folder import RunFolder

REPEATS = 7
QUESTION = "{instruction}\n\nThe task of the text above is called:"
TEMPLATE = "{instruction}\nAnswer:"
FIGURES = ("test/selector/top1", "test/selector/top3", "test/oracle/perplexity", "test/routed/perplexity", "test/loss")


def answerers(name: str, tasks: list[str]) -> dict[str, Answerer]:
    """One for each mode, over one bank with random adapters; with a reading for each adapter, too."""
    cfg = settings(name)
    base = load(cfg)
    base.model.eval().to(DEVICE)
    names = [SELECTOR, *tasks]
    chain = Chain(base.model, instantiate(cfg.adapter), range(len(names) + 1))
    for tensor in chain.parameters():
        tensor.data.normal_(std=0.02)
    for bank in chain.banks.values():
        bank.lora_B.data[-1] = 0  # the base
    found = {}
    for mode in ACTIVATED:
        told = ChainFile(base.name, {task: task for task in tasks}, QUESTION, TEMPLATE, "exact", 0.0, BASE, 1 << 14,
                         None, mode)  # fmt: skip
        found[mode] = Answerer(base, chain, {task: Path(task) for task in names}, told, told.max_length)
        if mode == "all":
            assert found[mode].reuses, "the architecture reads for each adapter: there is nothing to compare"
    return found


def latency(answerer: Answerer, texts: list[str], new: int) -> dict[str, float]:
    """Medians of the seconds of one call, and of selecting alone."""
    whole, select = [], []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        answerer.generate(texts, new, batch_size=len(texts))
        whole.append(time.perf_counter() - start)
        start = time.perf_counter()
        answerer.select(texts, batch_size=len(texts))
        select.append(time.perf_counter() - start)
    return {"select_and_answer": median(whole[2:]), "select": median(select[2:])}


def main() -> None:
    """`key=value …`."""
    given = dict(pair.split("=", 1) for pair in sys.argv[1:])
    sizes = {key: int(given.get(key, default)) for key, default in
             (("tasks", 8), ("words", 400), ("new", 8), ("rows", 1))}  # fmt: skip
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    told: dict[str, Any] = {"command": " ".join(sys.argv[1:]), "device": device, "torch": torch.__version__} | sizes
    runs = {mode: given[mode] for mode in ACTIVATED if mode in given}
    if runs:
        metrics = {mode: RunFolder(Path(folder)).read_metrics() for mode, folder in runs.items()}
        told["runs"] = {mode: {key: own[key] for key in FIGURES if key in own} for mode, own in metrics.items()}
    draw = random.Random(0)
    words = ["hens", "legs", "count", "of", "the", "sum", "three", "seven", "town", "river", "letter", "word"]
    texts = [" ".join(draw.choices(words, k=sizes["words"])) + "?" for _ in range(sizes["rows"])]
    tasks = [f"task {chr(ord('a') + i % 26)} {i}" for i in range(sizes["tasks"])]
    found = {mode: latency(one, texts, sizes["new"])
             for mode, one in answerers(given.get("model", "smollm2-135m"), tasks).items()}  # fmt: skip
    ratio = found["none"]["select_and_answer"] / found["all"]["select_and_answer"]
    print(json.dumps(told | {"seconds": found, "none / all": ratio}, indent=2))


if __name__ == "__main__":
    main()
