"""`python -m lorachains.statistics data=moa …`: each task's rows and tokens, as Tab. 1 of MoA (arXiv 2403.03432)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lorachains.cli import one_line_errors, quick_imports
from lorachains.config import conf_dir

with quick_imports():
    from lorachains.data.statistics import TokenCounts, token_counts


def table(counts: Sequence[TokenCounts]) -> Table:
    """A task a row, and the sums below; tokens of training with those of validation and test in brackets, as there."""
    result = Table("task", "train", "val", "test", "train (eval.) tokens", "prompt mean/max", "answer mean/max")
    for of in counts:
        lengths = [f"{mean:.0f}/{most}" for mean, most in (of.prompt, of.answer)]
        result.add_row(of.task, *map(str, of.rows), _tokens(of.tokens), *lengths)
    rows, tokens = ([sum(of_split) for of_split in zip(*all_, strict=True)] for all_ in _columns(counts))
    result.add_row("all", *map(str, rows), _tokens(tokens))
    return result


def _columns(counts: Sequence[TokenCounts]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [of.rows for of in counts], [of.tokens for of in counts]


def _tokens(splits: Sequence[int]) -> str:
    return f"{_short(splits[0])} ({_short(sum(splits[1:]))})"


def _short(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 10_000 else str(count)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="statistics")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """Prints the table, and keeps its numbers in `output` if that is given."""
    data = instantiate(cfg.data, tokenizer=instantiate(cfg.model).tokenizer)
    data.setup()
    counts = token_counts(data)
    if cfg.output:
        Path(cfg.output).write_text(json.dumps([asdict(of) for of in counts], indent=2, ensure_ascii=False) + "\n")
    Console(width=None if sys.stdout.isatty() else 140).print(table(counts))


if __name__ == "__main__":
    main()
