"""Runs that find their knots by themselves: the chain is that of the knots if they had been given, stopped or not."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.methods import Lora
from lorachains.methods.passes import Passes
from lorachains.plateau import Plateau
from tests.methods.test_resume import stopped_and_resumed
from tests.runs import Log, States, cola, fit, make_method, outcome, run, side_by_side
from tests.test_plateau import knots_on

SETTINGS: dict[str, Any] = {"patience": 1, "min_steps": 4, "decay": 0.5, "min_improvement": 0.002, "links": 4}
PLATEAU = ["method=cola", "knots=plateau", *(f"knots.{key}={value}" for key, value in SETTINGS.items())]
METHOD = [*PLATEAU, "optim.lr=1e-2"]
EPOCHS = "trainer.max_epochs=6"
"""42 optimizer steps of a random model, 7 an epoch."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A run's folder, and after which optimizer steps it tied its knots."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    method = cola(run(folder, *METHOD, EPOCHS))
    assert len(method.plan) == 2
    return folder, method.plan


class Losses(L.Callback):
    """Keeps the loss of each batch by the optimizer step that it is of."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}
        self._step = 1

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._step = trainer.global_step + 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.seen.setdefault(self._step, []).append(outputs["loss"].item())


@pytest.mark.parametrize(("accumulate", "epochs"), [(1, 3), (2, 6)])
def test_knots_are_where_the_losses_say(accumulate: int, epochs: int) -> None:
    """Those of whole optimizer steps: the mean over their batches."""
    losses = Losses()
    method = cola(make_method(*METHOD))
    shared = [f"trainer.accumulate_grad_batches={accumulate}", f"trainer.max_epochs={epochs}"]
    fit(method, *shared, callbacks=[losses])
    means = [sum(batches) / len(batches) for _, batches in sorted(losses.seen.items())]
    assert [len(batches) for batches in losses.seen.values()][:2] == [accumulate] * 2
    assert method.chain.knots == method.plan == knots_on(means, Plateau(**SETTINGS)) != []


def test_the_run_is_that_of_the_same_knots_given(uninterrupted: tuple[Path, list[int]], tmp_path: Path) -> None:
    folder, plan = uninterrupted
    run(tmp_path, "method=cola", "knots=at_steps", f"knots.steps={plan}", "optim.lr=1e-2", EPOCHS)
    assert outcome(tmp_path) == outcome(folder)


@pytest.mark.parametrize(
    ("every", "kills"),
    [
        (1, [("before a batch", 0), ("after a batch", 9), ("before a batch", 10)]),  # the first loss was just looked at
        (1, [("after a batch", 13), ("before a batch", 13), ("after a batch", 14)]),  # around a knot
        (1, [("at an epoch's end", 21), ("before a batch", 23), ("in the test", 42)]),
        (4, [("before a batch", 15), ("before a batch", 26)]),  # what was done since the last checkpoint is done again
    ],
    ids=["early", "first knot", "second knot", "seldom saved"],
)
def test_a_stopped_run_ties_the_same_knots(
    every: int, kills: list[tuple[str, int]], uninterrupted: tuple[Path, list[int]], tmp_path: Path
) -> None:
    assert uninterrupted[1] == [13, 23]
    assert outcome(stopped_and_resumed(tmp_path, *METHOD, EPOCHS, kills=kills, every=every)) == outcome(
        uninterrupted[0]
    )


@pytest.mark.parametrize(("policy", "warmup"), [("restart", 0), ("rewarm", 3)])
def test_a_new_schedule_runs_to_the_end_of_the_run(policy: str, warmup: int) -> None:
    """From each knot on, since the next one isn't known; the first link's is that of the whole run, too."""
    log = Log()
    method = cola(make_method(*METHOD, f"knots.lr={policy}", "knots.warmup=3"))
    fit(method, EPOCHS, logger=log)
    assert method.plan != []
    starts, expected = [0, *method.plan], []
    for step in range(42):
        start = max(s for s in starts if s <= step)
        warm, done = (warmup if start else 0), step - start
        expected.append((done + 1) / (warm + 1) if done < warm else (42 - step) / (42 - start - warm))
    assert log.of("train/lr") == pytest.approx([1e-2 * factor for factor in expected])


def test_ranks_step_down_along_the_chain() -> None:
    method = make_method(*METHOD, "knots.ranks=[8,4,2,1]")
    fit(method, "trainer.max_epochs=3")
    found = [*method.chain.ranks, method.chain.rank]
    assert len(found) > 1
    assert found == [8, 4, 2, 1][: len(found)]


def test_there_is_room_for_the_longest_chain_where_passes_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a knot moves nothing that a graph reads, wherever it is tied."""
    monkeypatch.setattr(Passes, "replayed", True)
    layouts: set[int] = set()
    step = Lora.training_step

    def spying(self: Lora, batch: TokenBatch, batch_idx: int) -> Tensor:
        layouts.add(self.chain.layout)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Lora, "training_step", spying)
    method = make_method(*METHOD)
    fit(method, "trainer.max_epochs=3")
    assert len(method.chain.knots) > 0
    assert {bank.ledger_A.shape[1] for bank in method.chain.banks.values()} == {3 * 8}
    assert len(layouts) == 1


def test_the_adapters_of_a_run_share_its_knots() -> None:
    """They are tied by the mean of the adapters' losses."""
    losses, method = Losses(), cola(make_method(*METHOD, "+method.names=[one,two]"))
    fit(method, "trainer.max_epochs=2", callbacks=[losses], tasks=["one", "two"])
    means = [sum(batches) / len(batches) / 2 for _, batches in sorted(losses.seen.items())]
    assert method.plan == knots_on(means, Plateau(**SETTINGS)) != []


def test_runs_side_by_side_are_refused() -> None:
    with pytest.raises(LorachainsError, match="moments of their own: train the runs apart"):
        side_by_side(PLATEAU, [*PLATEAU, "seed=1"])
    side_by_side(*([*PLATEAU, "knots.links=1", f"seed={seed}"] for seed in (0, 1)))  # a chain of one link ties none


def test_wrong_ranks_are_refused_before_the_first_step() -> None:
    states = States()
    with pytest.raises(LorachainsError, match="2 ranks for a chain of up to 4 links"):
        fit(make_method(*METHOD, "knots.ranks=[8,4]"), callbacks=[states])
    assert not states.after


def test_only_a_plateau_looks_at_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other schedules send nothing to the host."""
    monkeypatch.setattr("lorachains.methods.cola.Late.note", lambda *_: pytest.fail("a loss was noted"))
    method = make_method("method=cola", "knots=at_steps", "knots.steps=[3]")
    fit(method, "trainer.max_steps=5")
    assert method.chain.knots == [3]
