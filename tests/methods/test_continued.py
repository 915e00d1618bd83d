"""Two stages: the second begins at the best of the first, with nothing left of its optimizer and schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException

from lorachains.data.batching import EpochBatches
from lorachains.errors import LorachainsError
from lorachains.methods import Lora
from tests.jobs import job, same, trained
from tests.methods.test_moa import DATA, TASKS, moa
from tests.methods.test_resume import stopped_and_resumed
from tests.runs import Log, fit, language_model, make_method, outcome, run
from tests.runs import same as equal

CONTINUED = "method=lora_continued"


def continued(*overrides: str, **fields: Any) -> Lora:
    return make_method(CONTINUED, *overrides, base=language_model(dtype=torch.float64), **fields)


def test_stage_2_is_a_training_of_its_own_from_the_best_of_stage_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps as of a LoRA that begins with those weights and no state, on the epochs that follow."""
    both, first = continued("method.stage1_epochs=1"), make_method(base=language_model(dtype=torch.float64))
    log, alone = Log(), Log()
    fit(both, "trainer.max_epochs=2", logger=log)
    fit(first, "trainer.max_epochs=1", logger=alone)
    first.best.restore(first)
    assert log.of("train/loss")[:7] == alone.of("train/loss")
    assert log.of("train/lr") == pytest.approx([5e-3 * (1 - step / 7) for step in range(7)] * 2)
    second, other = make_method(base=language_model(dtype=torch.float64)), Log()
    second.load_state_dict(first.state_dict())
    monkeypatch.setattr(EpochBatches, "set_epoch", lambda batches, epoch: setattr(batches, "epoch", epoch + 1))
    fit(second, "trainer.max_epochs=1", logger=other)
    assert log.of("train/loss")[7:] == other.of("train/loss")
    assert equal(both.state_dict(), second.state_dict())


def test_single_continued_is_moa_whose_routers_learn_nothing() -> None:
    """Bit for bit, so that either is the other's control."""
    ours, theirs = continued("method.stage1_epochs=1", names=TASKS), moa("method.eta=0", "method.stage1_epochs=1")
    for method in (ours, theirs):
        fit(method, "trainer.max_epochs=2", **DATA)
    assert equal(ours.chain.state_dict(), theirs.chain.state_dict())
    assert [best.step for best in ours.best.best] == [best.step for best in theirs.best.best]


@pytest.mark.parametrize(
    "kills", [[("before a batch", 7), ("after a batch", 9), ("in the test", 14)], [("at an epoch's end", 7)]]
)
def test_stopped_at_any_moment_it_ends_the_same(kills: list[tuple[str, int]], tmp_path: Path) -> None:
    overrides = [CONTINUED, "method.stage1_epochs=1", "trainer.max_epochs=2"]
    run(tmp_path / "whole", *overrides)
    again = stopped_and_resumed(tmp_path / "again", *overrides, kills=kills)
    assert outcome(again) == outcome(tmp_path / "whole")


def test_side_by_side_each_run_is_the_run_alone(tmp_path: Path) -> None:
    def runs(way: str) -> list[Any]:
        each = (["seed=0", "optim.lr=5e-3"], ["seed=3", "optim.lr=1e-2"])
        return [job(tmp_path / way / str(i), CONTINUED, "trainer.max_epochs=2", *own) for i, own in enumerate(each)]

    trained(runs("together"))
    for alone in runs("apart"):
        trained([alone])
    for i in "01":
        assert same(tmp_path / "together" / i, tmp_path / "apart" / i, 1e-8)


def test_half_of_all_epochs_is_stage_1(caplog: pytest.LogCaptureFixture) -> None:
    """An epoch cut short counts as one; of a single one nothing is stage 1, which is said."""
    method: Any = continued("method.stage1_epochs=null")
    fit(method, "trainer.max_epochs=2", "trainer.max_steps=13")
    assert (method.steps_per_epoch, method.boundary) == (7, 7)
    method = continued("method.stage1_epochs=null")
    fit(method, "trainer.max_epochs=1")
    assert (method.boundary, "of one epoch stage 1 has none" in caplog.text) == (0, True)


def test_refusals() -> None:
    with pytest.raises(InstantiationException, match=r"method.stage1_epochs is -1"):
        continued("method.stage1_epochs=-1")
    with pytest.raises(LorachainsError, match="leaves none of 7 optimizer steps for stage 2"):
        fit(continued("method.stage1_epochs=1"), "trainer.max_epochs=1")
