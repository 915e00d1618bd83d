"""`hydra/launcher=replicas` leaves what Hydra's own launcher leaves, and says which jobs it trains together."""

import json
import logging
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from hydra_plugins.lorachains_replicas import _cluster, _launch
from tests.cli.conftest import Train

REPLICAS = ["-m", "hydra/launcher=replicas"]
GRID = ["method=lora,cola", "knots=even", "knots.links=2", "seed=0,1"]


def folders(path: Path) -> dict[str, Path]:
    """The run folders by name."""
    return {run.name: run for run in path.iterdir() if (run / "train.log").is_file()}


def files(run: Path) -> set[str]:
    """What a run leaves, but for its checkpoint: a group has one in common."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if "checkpoints" not in path.parts}


def finished(path: Path) -> int:
    return len(list(path.glob("*/metrics.json")))


def test_each_job_is_left_as_if_run_alone(train: Train, tmp_path: Path) -> None:
    assert train("-m", *GRID, "hydra.sweep.dir=alone").code == 0
    assert train(*REPLICAS, *GRID).code == 0
    alone, together = folders(tmp_path / "alone"), folders(tmp_path / "runs")
    assert len(alone) == 4
    assert alone.keys() == together.keys()
    for name, one in alone.items():
        other = together[name]
        assert files(one) == files(other)
        for same in ("config.yaml", ".hydra/config.yaml", "adapter/adapter_config.json"):
            assert (other / same).read_text() == (one / same).read_text().replace("/alone/", "/runs/")
        ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (other, one))
        assert ours.keys() == theirs.keys()
        assert ours["test/loss"] == pytest.approx(theirs["test/loss"], rel=1e-4)


def test_it_says_which_jobs_are_trained_together(train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, "adapter.r=4,8", "seed=0,1")
    assert "2 groups, kept apart by adapter.r (4, 8)" in done.out
    for run in folders(tmp_path / "runs").values():
        [r] = [line[-1] for line in (run / ".hydra" / "overrides.yaml").read_text().split("\n") if "adapter.r" in line]
        lines = [line.partition("INFO ")[2] for line in (run / "train.log").read_text().splitlines()]
        jobs = {"4": "0, 1", "8": "2, 3"}[r]
        seeds = "data.order_seed (0, 1), seed (0, 1)"
        assert lines.count(f"jobs {jobs} as one bank, differing in {seeds}") == 1
        assert any("optimizer step 2" in line for line in lines)  # how the training went
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers)


def test_a_job_of_another_kind_runs_alone(train: Train) -> None:
    done = train(*REPLICAS, "trainer.max_epochs=1,2")
    assert done.code == 0
    assert "2 groups, kept apart by trainer.max_epochs (1, 2)" in done.out
    assert all(f"job {number} alone" in done.out for number in (0, 1))


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("adapter.r=2,0,4", ["adapter.r=0", "adapter.r is 0: give a rank of at least 1"]),  # a group of its own
        ("seed=0,-1,1", ["seed=-1", "seed is -1: give a whole number"]),  # the others are a group without it
        ("optim.lr=1e-3,0.0,1e-4", ["optim.lr=0.0", "optim.lr is 0.0"]),
        ("optim.warmup=0,x,2", ["optim.warmup=x", "optim"]),
    ],
)
def test_a_failing_job_takes_no_other_along(sweep: str, says: Sequence[str], train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, sweep)
    assert done.code == 1
    assert all(part in done.err for part in says)
    assert "Traceback" not in done.err
    assert finished(tmp_path / "runs") == 2


def test_a_fault_of_the_program_is_shown_whole(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def broken(jobs: Sequence[Any]) -> list[Any]:
        raise ZeroDivisionError("of the bank")

    monkeypatch.setattr("hydra_plugins.lorachains_replicas._jobs.train_jobs", broken)
    done = train(*REPLICAS, "seed=0,1")
    assert done.code == 1
    assert "ZeroDivisionError: of the bank" in done.err
    assert "in broken" in done.err  # where it happened
    for run in folders(tmp_path / "runs").values():
        assert (run / "train.log").read_text().count("Traceback") == 1


def test_a_failed_bank_leaves_its_memory_to_the_next(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bank:
        pass

    banks: list[weakref.ref[Bank]] = []
    held: list[int] = []

    def train_bank() -> None:
        bank = Bank()
        banks.append(weakref.ref(bank))
        raise ZeroDivisionError

    def broken(jobs: Sequence[Any]) -> list[Any]:
        held.append(sum(bank() is not None for bank in banks))
        try:
            train_bank()
        except ZeroDivisionError as error:
            return [error] * len(jobs)
        return []

    monkeypatch.setattr("hydra_plugins.lorachains_replicas._jobs.train_jobs", broken)
    assert train(*REPLICAS, "adapter.r=2,4", "seed=0,1").code == 1
    assert held == [0, 0]


def test_finished_jobs_are_left_out(train: Train, tmp_path: Path) -> None:
    assert train(*REPLICAS, "seed=0,1,2").code == 0
    metrics = sorted((tmp_path / "runs").glob("*/metrics.json"))
    before = {path: path.stat().st_mtime_ns for path in metrics}
    metrics[1].unlink()
    again = train(*REPLICAS, "seed=0,1,2", "resume=true")
    assert (again.code, again.out.count("is finished: nothing to resume")) == (0, 2)
    assert "job 1 alone" in again.out
    assert {path for path in metrics if path.stat().st_mtime_ns == before[path]} == {metrics[0], metrics[2]}
    once_more = train(*REPLICAS, "seed=0,1,2", "resume=true")
    assert (once_more.code, once_more.out.count("is finished: nothing to resume")) == (0, 3)


def test_a_finished_folder_is_not_overwritten(train: Train, tmp_path: Path) -> None:
    assert train(*REPLICAS, "seed=0").code == 0
    done = train(*REPLICAS, "seed=0,1")
    assert (done.code, finished(tmp_path / "runs")) == (1, 2)
    assert "error in job" in done.err
    assert "already holds a finished run" in done.err


def test_two_jobs_of_the_same_settings(train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, "seed=0,0")
    assert (done.code, finished(tmp_path / "runs")) == (1, 1)
    assert "is that of job 0 too" in done.err


def test_a_group_is_no_larger_than_asked(train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, "seed=0,1,2", "hydra.launcher.group_size=2")
    assert (done.code, finished(tmp_path / "runs")) == (0, 3)
    assert "jobs 0, 1 as one bank" in done.out
    assert "job 2 alone" in done.out


def test_each_job_has_its_own_wandb_run(train: Train, tmp_path: Path) -> None:
    assert train(*REPLICAS, "seed=0,1", "logger=wandb").code == 0
    runs = list((tmp_path / "runs").glob("*/wandb/offline-run-*"))
    assert len(runs) == len({run.parents[1] for run in runs}) == 2
    assert all(any(file.stat().st_size > 0 for file in run.glob("*.wandb")) for run in runs)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hydra.launcher.group_size=0", "hydra.launcher.group_size is 0: give 1 or more"),
        ("hydra.launcher.submitit={cluster:nowhere}", "doesn't know any executor named nowhere"),
        ("+hydra.launcher.submitit.nosuch=1", "Parameter 'nosuch'"),
        ("hydra.launcher.submitit=slurm", "hydra.launcher.submitit is 'slurm': give a mapping"),
        ("hydra.launcher.submitit={cluster:debug,gpus_per_node:many}", '"gpus_per_node" expected type'),
        ("hydra.job.chdir=true", "hydra.job.chdir is true"),
    ],
)
def test_wrong_settings(override: str, says: str, train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, "seed=0,1", override)
    assert (done.code, finished(tmp_path / "runs")) == (1, 0)
    [line] = [line for line in done.err.splitlines() if line.startswith("error")]
    assert says in line
    assert "Traceback" not in done.err


def test_it_only_trains(
    train: Train, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from lorachains.evaluate import main

    monkeypatch.setattr(sys, "argv", ["lorachains.evaluate", *REPLICAS, "model=tiny", "seed=0,1"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "hydra/launcher=replicas trains" in capfd.readouterr().err


def test_submitit_is_an_extra(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = train(*REPLICAS, "seed=0,1", "hydra.launcher.submitit={cluster:debug}")
    assert done.code == 1
    assert "error: hydra.launcher.submitit needs submitit: pip install 'lorachains[slurm]'" in done.err


def test_each_group_is_a_job_of_the_cluster(train: Train, tmp_path: Path) -> None:
    """`debug` is submitit's cluster within this process."""
    done = train(*REPLICAS, "adapter.r=2,0,4", "seed=0,1", "hydra.launcher.submitit={cluster:debug}")
    assert (done.code, finished(tmp_path / "runs")) == (1, 4)
    assert done.out.count("submitit job DEBUG_") == 3
    assert "adapter.r is 0: give a rank of at least 1" in done.err
    assert "Traceback" not in done.err


def test_a_group_can_be_sent_to_another_process(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """There and back through cloudpickle, as submitit sends it; also an error that can't be pickled."""

    class Unpicklable(Exception):
        def __reduce__(self) -> str:
            raise TypeError

    def sent(group: Sequence[Any]) -> list[Any]:
        received = cloudpickle.loads(cloudpickle.dumps(group))
        assert [ready.job.cfg for ready in received] == [ready.job.cfg for ready in group]
        return list(cloudpickle.loads(cloudpickle.dumps(_cluster._portable(received))))

    monkeypatch.setattr(_launch, "train_group", sent)
    done = train(*REPLICAS, "seed=0,1")
    assert (done.code, finished(tmp_path / "runs")) == (0, 2)
    monkeypatch.setattr(
        "hydra_plugins.lorachains_replicas._jobs.train_jobs", lambda jobs: [Unpicklable("no") for _ in jobs]
    )
    done = train(*REPLICAS, "seed=2,3")
    assert done.code == 1
    assert "Unpicklable: no" in done.err


@pytest.mark.slow  # a process of its own imports everything again
def test_groups_in_processes_of_their_own(train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, "adapter.r=2,0", "seed=0,1", "hydra.launcher.submitit={cluster:local,timeout_min:5}")
    assert (done.code, finished(tmp_path / "runs")) == (1, 2)
    assert "adapter.r is 0: give a rank of at least 1" in done.err
    for run in folders(tmp_path / "runs").values():
        assert "as one bank, differing in" in (run / "train.log").read_text()


def test_a_job_of_the_cluster_that_dies(train: Train, tmp_path: Path) -> None:
    done = train(*REPLICAS, "seed=0,1", "hydra.launcher.submitit={cluster:local,local_setup:[exit 3]}")
    assert (done.code, finished(tmp_path / "runs")) == (1, 0)
    assert done.out.count("failed: see ") == 2
    assert "Traceback" not in done.err
