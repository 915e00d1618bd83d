"""What two jobs have in common up to a knot is trained once, and the one that goes on from there is as if run alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorachains.batch import TokenBatch
from lorachains.cli import settings_of
from lorachains.grouping import trunk
from lorachains.jobs import Job
from lorachains.methods import Lora
from tests.jobs import job, same, trained
from tests.runs import settings

COLA = ["method=cola", "knots=at_steps"]


@pytest.mark.parametrize("at", [7, 10, 14], ids=["epoch's end", "within an epoch", "later epoch's end"])
@pytest.mark.parametrize("runs", [1, 2], ids=["alone", "side by side"])
def test_a_branch_is_the_run_alone(tmp_path: Path, at: int, runs: int) -> None:
    def jobs(way: str, *overrides: str) -> list[Job]:
        return [
            job(tmp_path / way / str(i), *overrides, f"seed={i}", "trainer.max_epochs=3", "trainer.log_every_n_steps=1")
            for i in range(runs)
        ]

    branch, alone = (jobs(way, *COLA, f"knots.steps=[{at},18]") for way in ("branch", "alone"))
    trunks = [replace(one, branches=(branch[0].cfg.knots,)) for one in jobs("trunk", "method=lora")]
    trained(trunks)
    made: list[int] = []
    training_step = Lora.training_step

    def counting(self: Lora, batch: TokenBatch, batch_idx: int) -> Any:
        made.append(batch_idx)
        return training_step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lora, "training_step", counting)
        trained([replace(one, trunk=of) for one, of in zip(branch, trunks, strict=True)])
    assert len(made) == 21 - at  # none of its trunk's again
    trained(alone)
    for ours, theirs in zip(branch, alone, strict=True):
        assert same(ours.folder.path, theirs.folder.path, 1e-9)


def test_without_its_trunk_a_branch_begins_at_the_beginning(tmp_path: Path) -> None:
    lost, one, alone = (
        job(tmp_path / name, *COLA, "knots.steps=[10]", "trainer.max_epochs=3") for name in ("lost", "one", "alone")
    )
    trained([replace(one, trunk=lost)])
    trained([alone])
    assert same(one.folder.path, alone.folder.path, 1e-12)


def given(*overrides: str) -> dict[str, Any]:
    return settings_of(settings(*overrides))


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["method=cola"], 0),
        (["method=cola", "knots=even", "knots.links=2", "knots.mode=merge"], 0),
        (["method=cola", "knots=even", "knots.ranks=[8,4,2]"], 0),
        (["method=cola", "knots=even", "knots.ranks=[4,4,4]"], None),
        (["method=cola", "knots.lr=restart"], None),
        (["method=cola", "optim.lr=1e-4"], None),
        (["method=cola", "seed=1"], 1),
        (["method=cola", "adapter.r=4"], None),
        (["method=cola", "knots=none"], None),
        (["method=cola", "knots=plateau"], None),  # its first knot isn't known
        (["method=lora"], None),
    ],
)
def test_the_trunk_is_the_same_run_without_knots(overrides: list[str], found: int | None) -> None:
    lora = [given("method=lora"), given("method=lora", "seed=1")]
    assert trunk(given(*overrides), lora) == found


def test_a_chain_of_one_link_is_a_trunk_too() -> None:
    chain = ["method=cola", "knots=even"]
    assert trunk(given(*chain, "knots.links=3"), [given(*chain, "knots.links=1")]) == 0
    assert trunk(given(*chain, "knots.links=3"), [given(*chain, "knots.links=2")]) is None
