"""COLA's Table 4 (arXiv 2401.04151, §6.2): the training FLOPs that stepping down in rank saves, from the estimator.

    python benchmarks/cola_table4.py DIR [TOKENIZER]

`DIR` holds SuperGLUE's official files, as `data.root` does; `TOKENIZER` is facebook/opt-1.3b by default. Prints, for
each entry, what the paper prints and what the estimator of `lorachains.flops` gives for OPT-1.3B on the rows that
MeZO's code, on which the paper builds (App. A.1), would train on: see docs/flops.md. No weights are needed.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from omegaconf import OmegaConf
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorachains.config import conf_dir
from lorachains.data.prompts import TASKS
from lorachains.data.superglue import ORIGINS
from lorachains.data.tasks import Example
from lorachains.flops import parameters
from lorachains.inject import inject
from lorachains.routing import Routing

PRINTED = {
    "cb": {6: 3.60e11, 4: 7.20e11, 2: 1.08e12},
    "wsc": {6: 4.28e10, 4: 8.56e10, 2: 1.28e11},
    "wic": {6: 5.21e11, 4: 1.04e12, 2: 1.56e12},
}
"""FLOPs saved by COLA (8, r), by task and r."""
ROWS = {"cb": 150, "wsc": 54, "wic": 1000}
"""Training rows: MeZO draws 1000 + 500 (CB: 1000 + 100), and sets the last 500 (100) apart where there are fewer."""
EPOCHS, BATCH, MULTIPLE, SEEDS = 2, 8, 8, 5
"""The epochs of the second link; rows of a batch; padding goes to a multiple of 8 tokens; runs that are averaged."""


def opt_parameters(rank: int) -> int:
    """N of the estimator: OPT-1.3B with LoRA on queries and values."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / "opt-1.3b.yaml").architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    for bank in inject(model, LoraConfig(target_modules=["q_proj", "v_proj"]), 1, Routing()).values():
        bank.extend(torch.empty(1, rank, bank.in_features, device="meta"), torch.ones(1, device="meta"))
    return parameters(model)


def examples(task: str, root: Path) -> list[Example]:
    """The official training rows."""
    origin = ORIGINS[task]
    file = next(root / name for name in origin.train if (root / name).is_file())
    return [TASKS[task].read(row) for row in origin.read(file)]


def padded_tokens(rows: list[list[int]], number: int, seed: int) -> int:
    """The tokens of a run's second link.

    Args:
        rows: the lengths of each row's texts, one for each candidate: all of them are trained on, as one batch.
        number: how many of the rows are drawn.
    """
    rng, total = random.Random(seed), 0
    drawn = rng.sample(rows, number)
    for _ in range(EPOCHS):
        rng.shuffle(drawn)
        for start in range(0, number, BATCH):
            texts = [length for row in drawn[start : start + BATCH] for length in row]
            total += len(texts) * -(-max(texts) // MULTIPLE) * MULTIPLE
    return total


def means(rows: list[list[int]], number: int, draws: int = 200) -> list[float]:
    """`padded_tokens`, each the mean of five seeds."""
    return [mean(padded_tokens(rows, number, SEEDS * draw + seed) for seed in range(SEEDS)) for draw in range(draws)]


def lengths(rows: list[Example], tokens: Callable[[str], int]) -> list[list[int]]:
    """How long each row's texts are."""
    return [[tokens(row.prompt + candidate) for candidate in row.candidates] for row in rows]


def main(root: str, name: str = "facebook/opt-1.3b") -> None:
    """Prints the table."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    per_token = {rank: 6 * (opt_parameters(8) - opt_parameters(rank)) for rank in (6, 4, 2)}
    print("| task | COLA | printed | estimated (± between draws) | estimated / printed |\n|---|---|---|---|---|")
    for task, printed in PRINTED.items():
        rows = lengths(examples(task, Path(root)), lambda text: len(tokenizer(text).input_ids))
        tokens = means(rows, ROWS[task])
        for rank, flops in printed.items():
            ours, spread = mean(tokens) * per_token[rank], stdev(tokens) * per_token[rank]
            print(f"| {task} | (8, {rank}) | {flops:.2e} | {ours:.2e} ± {spread:.0e} | {ours / flops:.3f} |")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("give DIR, which holds SuperGLUE's files, and a tokenizer if not that of facebook/opt-1.3b")
    main(*sys.argv[1:])
