"""Each run's logger gets the run's own numbers, under the optimizer step that they are of."""

from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from tests.runs import DIVERGING, Log, fit, language_model, make_data, make_method, run, side_by_side

Row = tuple[int | None, dict[str, float]]


def training(log: Log) -> list[Row]:
    return [row for row in log.rows if any(name.startswith("train/loss") for name in row[1])]


def logged(*overrides: str, **fields: Any) -> list[Row]:
    log = Log()
    fit(make_method(**fields), "trainer.gradient_clip_val=0.1", *overrides, logger=log)
    return training(log)


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (2, 1), (5, 1), (7, 1), (1, 3), (2, 3)])
def test_every_so_many_optimizer_steps(every: int, accumulate: int) -> None:
    """The numbers are those that a log of every step has there; the last of an epoch accumulates one batch only."""
    shared = f"trainer.accumulate_grad_batches={accumulate}"
    all_steps = logged(shared)
    total = 3 * -(-7 // accumulate)
    assert [step for step, _ in all_steps] == list(range(1, total + 1))
    assert logged(shared, f"trainer.log_every_n_steps={every}") == all_steps[every - 1 :: every]


def test_a_row_is_of_the_step_that_it_names() -> None:
    """The rate with which the step was made, and the loss before it: the first one's is that of the untrained model."""
    rows = logged()
    assert [metrics["train/lr"] for _, metrics in rows] == pytest.approx([5e-3 * (1 - step / 21) for step in range(21)])
    still = logged("trainer.max_steps=1")
    assert rows[0][1]["train/loss"] == still[0][1]["train/loss"]
    assert rows[0][1].keys() >= {"link", "train/loss", "train/lr", "train/gradient_norm"}


def runs(count: int, **data: Any) -> RunsDataModule:
    """The stub's data for so many runs, each in an order of its own."""
    first: TaskDataModule = make_data(language_model(), **data)
    first.setup()
    return RunsDataModule([first.in_order(seed) for seed in range(count)])


def test_each_run_has_its_own_logger() -> None:
    logs = [Log(), Log()]
    fit(side_by_side(["seed=0"], ["seed=1"]), logger=logs, module=runs(2))
    for seed, log in enumerate(logs):
        alone = Log()
        fit(make_method(seed=seed), logger=alone, order_seed=seed)
        assert [step for step, _ in log.rows] == [step for step, _ in alone.rows]
        for (_, ours), (_, theirs) in zip(log.rows, alone.rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)
    assert logs[0].of("train/loss") != pytest.approx(logs[1].of("train/loss"), rel=1e-3)


def test_each_runs_adapters_bear_their_names() -> None:
    logs = [Log(), Log()]
    method = side_by_side(*([f"seed={seed}", "+method.names=[one,two]"] for seed in (0, 1)))
    fit(method, logger=logs, module=runs(2, tasks=["one", "two"]))
    expected = {f"train/{name}/{adapter}" for name in ("loss", "lr") for adapter in ("one", "two")}
    for log in logs:
        assert {key for _, row in log.rows for key in row if key.startswith("train/")} == expected
    present = [method.presence[:, 2 * run + i].nonzero().flatten() + 1 for run in (0, 1) for i in (0, 1)]
    for steps, (log, adapter) in zip(present, product(logs, ("one", "two")), strict=True):
        assert [step for step, row in log.rows if f"train/loss/{adapter}" in row] == steps.tolist()
    last = [row for log in logs for step, row in training(log) if step == len(method.presence)]
    losses = [loss for row in last for name, loss in row.items() if name.startswith("train/loss/")]
    assert method.journal.shown["train/loss"] == pytest.approx(sum(losses) / len(losses))


def test_a_stopped_run_logs_nothing_more() -> None:
    logs = [Log(), Log()]
    method = side_by_side(["optim=sgd", "optim.lr=1e-2"], DIVERGING)
    fit(method, logger=logs, module=runs(2))
    assert list(method.failures) == [1]
    assert [step for step, _ in training(logs[0])] == list(range(1, 22))
    assert [step for step, _ in training(logs[1])] == list(range(1, 8))
    assert len(logs[0].of("val/loss")) == 3


class Killed(Exception):
    pass


class Kill(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            raise Killed


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_goes_on_with_its_log(accumulate: int, tmp_path: Path) -> None:
    """It has all steps, also those before the stop, once: as in a run that wasn't stopped."""
    overrides = [f"trainer.accumulate_grad_batches={accumulate}", "trainer.log_every_n_steps=2"]

    def rows(folder: str, **kwargs: Any) -> list[Row]:
        log = run(tmp_path / folder, *overrides, **kwargs).trainer.logger
        assert isinstance(log, Log)
        return training(log)

    with pytest.raises(Killed):
        run(tmp_path / "killed", *overrides, callbacks=[Kill()])
    assert rows("killed", resume=True) == rows("whole")
