"""A run's FLOPs are those of its training passes, counted with the links of each moment."""

import logging
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lorachains.batch import TokenBatch
from lorachains.callbacks.flops import FlopsCount
from lorachains.methods import Lora
from tests.runs import cola, fit, language_model, make_method

DOWN = ["method=cola", "knots=at_steps", "knots.steps=[4,14]"]
"""Knots in the first epoch and at the end of the second, of three; 7 batches an epoch."""

pytestmark = pytest.mark.usefixtures("plain_attention")


class Measured:
    """Counts what PyTorch sees of a method's training passes, and keeps their batches."""

    def __init__(self, method: Lora):
        self.flops, self.batches, self.ranks = 0, list[TokenBatch](), list[int]()
        train = method.passes.train

        def measured(batch: TokenBatch) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = train(batch)
            self.flops += counter.get_total_flops()
            self.batches.append(batch)
            self.ranks.append(method.chain.rank)
            return result

        method.passes.train = measured  # type: ignore[method-assign]


@pytest.mark.parametrize("mode", ["ledger", "merge"])
def test_a_runs_flops_are_those_of_its_passes(mode: str) -> None:
    method, count = make_method(*DOWN, f"knots.mode={mode}", "knots.ranks=[8,4,2]"), FlopsCount()
    measured = Measured(method)
    fit(method, callbacks=[count])
    assert len(cola(method).chain.ranks) == 2
    found = count.metrics(0, ["adapter"], seconds=2.0, bank=1)
    assert found["train/flops"] == measured.flops
    assert found["train/flops_per_second"] == measured.flops / 2


@pytest.mark.parametrize("mode", ["ledger", "merge"])
def test_stepping_down_saves_what_the_ranks_say(mode: str) -> None:
    """By the estimator 6 for each parameter less and each padded token, whatever the mode; of products, more."""
    counts, passes = [], Measured(make_method())
    for ranks in ("[8,8,8]", "[8,4,2]"):
        method = make_method(*DOWN, f"knots.mode={mode}", f"knots.ranks={ranks}")
        passes = Measured(method)
        count = FlopsCount()
        fit(method, callbacks=[count])
        counts.append(count.metrics(0, ["adapter"], 1.0, 1))
    each = sum(bank.in_features + bank.out_features for bank in method.chain.banks.values())
    rows = [[len(text) + 1 for text in batch.input_ids.split(batch.lengths)] for batch in passes.batches]
    saved = sum(6 * each * (8 - rank) * len(texts) * max(texts) for texts, rank in zip(rows, passes.ranks, strict=True))
    assert counts[0]["train/flops_6n"] - counts[1]["train/flops_6n"] == saved
    share = [1 - counts[1][key] / counts[0][key] for key in ("train/flops", "train/flops_6n")]
    assert share[0] > share[1] > 0


def test_each_of_several_adapters_has_its_own() -> None:
    """Their texts cost what they cost where all are one adapter's."""
    count = FlopsCount()
    both = make_method(names=["one", "two"])
    fit(both, callbacks=[count], tasks=["one", "two"])
    found = count.metrics(0, both.names, 1.0, len(both.names))
    whole = FlopsCount()
    fit(make_method(), callbacks=[whole], tasks=["one", "two"])
    for key in ("flops", "flops_6n"):
        assert found[f"train/{key}"] == found[f"train/one/{key}"] + found[f"train/two/{key}"]
        assert found[f"train/one/{key}"] > 0 < found[f"train/two/{key}"]
    assert found["train/flops"] == whole.metrics(0, ["adapter"], 1.0, 1)["train/flops"]


def test_unknown_weights_leave_the_count_out(caplog: pytest.LogCaptureFixture) -> None:
    base = language_model()
    base.model.model.conv = torch.nn.Conv1d(2, 3, 5)
    count = FlopsCount()
    with caplog.at_level(logging.WARNING, "lorachains"):
        fit(make_method(base=base), callbacks=[count])
    assert "train/flops is left out: the products of model.conv.weight aren't known" in caplog.text
    found = count.metrics(0, ["adapter"], 1.0, 1)
    assert set(found) == {"train/flops_6n"}
    assert found["train/flops_6n"] > 0
