"""Tokens are counted without padding, seconds without validation; the log has a line an epoch."""

import logging
import time

import lightning as L
import pytest

from lorachains.callbacks.progress import Throughput
from tests.runs import fit, language_model, make_data, make_method


def test_tokens_are_those_of_all_batches() -> None:
    throughput = Throughput()
    fit(make_method(), callbacks=[throughput])
    data = make_data(language_model())
    data.setup()
    assert throughput.tokens == 3 * sum(len(row.choices[0].input_ids) for row in data.rows("train"))


def test_validation_takes_no_training_time() -> None:
    class SlowValidation(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            time.sleep(1)

    throughput = Throughput()
    started = time.perf_counter()
    fit(make_method(), callbacks=[throughput, SlowValidation()])
    assert 0 < throughput.seconds < time.perf_counter() - started - 3


def test_the_log_has_a_line_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lorachains"):
        fit(make_method(), callbacks=[Throughput()])
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch")]
    assert len(lines) == 3
    assert lines[1].startswith("epoch 2 of 3, optimizer step 14: ")
    assert all(key in lines[1] for key in ("train/loss", "val/accuracy", "val/loss", "tokens/s"))
