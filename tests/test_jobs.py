"""Jobs become groups that fit into memory, each job gets its own outcome, and one bad job takes no other along."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lorachains import jobs as module
from lorachains.errors import LorachainsError
from lorachains.jobs import Job, train_jobs
from lorachains.session import Outcome
from tests.jobs import job

Groups = list[list[int]]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Groups]:
    """Stands in for the training of a group; returns the seeds of the groups that were tried."""

    def stand_in(most: int, failing: int | None = None, kind: type[Exception] = torch.OutOfMemoryError) -> Groups:
        tried: Groups = []

        def train(jobs: Sequence[Job]) -> list[Outcome]:
            seeds = [int(job.cfg.seed) for job in jobs]
            tried.append(seeds)
            if len(jobs) > most:
                raise kind("CUDA out of memory.\nTried to allocate")
            if failing in seeds:
                raise RuntimeError("broken")
            return [{"seed": float(seed)} for seed in seeds]

        monkeypatch.setattr(module, "_train", train)
        return tried

    return stand_in


def jobs_of(folder: Path, count: int) -> list[Job]:
    return [job(folder / str(seed), f"seed={seed}") for seed in range(count)]


def seeds(outcomes: list[Outcome]) -> list[int]:
    assert all(isinstance(outcome, dict) for outcome in outcomes)
    return [int(outcome["seed"]) for outcome in outcomes if isinstance(outcome, dict)]


def test_all_at_once_or_so_many_at_a_time(tmp_path: Path, groups: Callable[..., Groups]) -> None:
    tried = groups(most=99)
    assert seeds(train_jobs(jobs_of(tmp_path / "all", 5))) == [0, 1, 2, 3, 4]
    assert tried == [[0, 1, 2, 3, 4]]
    tried.clear()
    assert seeds(train_jobs(jobs_of(tmp_path / "some", 5), group_size=2)) == [0, 1, 2, 3, 4]
    assert tried == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_too_large_a_group_is_halved(tmp_path: Path, groups: Callable[..., Groups], kind: type[Exception]) -> None:
    """Whether PyTorch's allocator finds no memory, or CUDA none of its own."""
    tried = groups(most=2, kind=kind)
    assert seeds(train_jobs(jobs_of(tmp_path, 5))) == [0, 1, 2, 3, 4]
    assert [group for group in tried if len(group) <= 2] == [[0, 1], [2], [3, 4]]


def test_a_run_that_does_not_fit_alone_says_what_to_do(tmp_path: Path, groups: Callable[..., Groups]) -> None:
    groups(most=0)
    for outcome in train_jobs(jobs_of(tmp_path, 2)):
        assert isinstance(outcome, LorachainsError)
        assert str(outcome) == (
            "out of memory (CUDA out of memory.): "
            "lower data.batch_size or data.max_length, or set model.checkpointing=true"
        )


def test_an_error_ends_its_group_alone(tmp_path: Path, groups: Callable[..., Groups]) -> None:
    groups(most=99, failing=2)
    outcomes = train_jobs(jobs_of(tmp_path, 5), group_size=2)
    assert [type(outcome) for outcome in outcomes] == [dict, dict, RuntimeError, RuntimeError, dict]


def test_a_used_folder_keeps_its_own_job_out(tmp_path: Path, groups: Callable[..., Groups]) -> None:
    tried = groups(most=99)
    jobs = jobs_of(tmp_path, 3)
    jobs[1].folder.path.mkdir()
    jobs[1].folder.metrics.write_text("{}")
    first, refused, last = train_jobs(jobs)
    assert tried == [[0, 2]]
    assert seeds([first, last]) == [0, 2]
    assert isinstance(refused, LorachainsError)
    assert "already holds a finished run" in str(refused)
    assert jobs[1].folder.read_metrics() == {}
