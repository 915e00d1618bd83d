"""The savings that COLA's Table 4 prints follow from the estimator, on the rows that MeZO's code trains on."""

from math import floor, log10
from pathlib import Path
from statistics import mean

import cola_table4
import pytest
from tokenizers import pre_tokenizers

PER_RANK = 24 * 2 * (2048 + 2048)
"""Parameters of OPT-1.3B's links for each rank: A and B of queries and values in 24 layers."""


def implied(printed: dict[int, float]) -> tuple[float, float]:
    """The tokens for which all entries of a task are printed as they are: at least, at most."""
    least, most = 0.0, float("inf")
    for rank, flops in printed.items():
        half = 10 ** (floor(log10(flops)) - 2) / 2  # three digits are printed
        each = 6 * PER_RANK * (8 - rank)
        least, most = max(least, (flops - half) / each), min(most, (flops + half) / each)
    return least, most


def test_each_rank_saves_six_times_its_parameters() -> None:
    """N is that of OPT-1.3B's layers and norms beside the link."""
    hidden, ffn = 2048, 8192
    layer = 4 * (hidden**2 + hidden) + 2 * hidden * ffn + ffn + hidden + 2 * 2 * hidden
    for rank in (8, 6, 4, 2):
        assert cola_table4.opt_parameters(rank) == 24 * layer + 2 * hidden + rank * PER_RANK


@pytest.mark.parametrize("task", ["cb", "wsc", "wic"])
def test_a_tasks_entries_are_of_one_number_of_tokens(task: str) -> None:
    least, most = implied(cola_table4.PRINTED[task])
    assert 0.99 * most < least <= most


@pytest.mark.parametrize("task", ["cb", "wsc", "wic"])
def test_the_entries_fit_the_rows(task: str, data_root: Path) -> None:
    """OPT's tokens are at least the pieces that its tokenizer first cuts a text into, and few more in plain English.

    The mean of five runs fits, over all candidates of each row; their sum doesn't, nor the right candidate alone.
    """
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    examples = cola_table4.examples(task, data_root)
    rows = cola_table4.lengths(examples, lambda text: 1 + len(cut.pre_tokenize_str(text)))
    least, most = implied(cola_table4.PRINTED[task])
    pieces = mean(cola_table4.means(rows, cola_table4.ROWS[task], draws=10))
    assert 0.95 * pieces < most
    assert least < 1.25 * pieces
    alone = mean(cola_table4.means([row[:1] for row in rows], cola_table4.ROWS[task], draws=10))
    assert 1.25 * alone < least


def test_padding_is_to_the_longest_of_a_batch_and_a_multiple_of_eight() -> None:
    assert cola_table4.padded_tokens([[9, 10], [3, 4]], 2, 0) == 2 * 4 * 16
    assert cola_table4.padded_tokens([[8, 8]] * 9, 9, 0) == 2 * (16 + 2) * 8
