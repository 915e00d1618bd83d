"""What the replicas launcher does. The module's name keeps Hydra from importing it at each start."""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from hydra_plugins.lorachains_replicas._cluster import Cluster
from hydra_plugins.lorachains_replicas._jobs import Ready, failure, prepare, train_group
from lorachains.errors import LorachainsError
from lorachains.grouping import differing, group, told, trunk, why_alone, why_apart
from lorachains.jobs import GROUPS, checkpoint_of
from lorachains.session import Outcome

if TYPE_CHECKING:
    from hydra_plugins.lorachains_replicas.replicas import ReplicasLauncher

log = logging.getLogger(__name__)


def launch(
    launcher: "ReplicasLauncher", job_overrides: Sequence[Sequence[str]], configs: Sequence[DictConfig], first: int
) -> list[JobReturn]:
    """Prepares the jobs, numbered from `first`, trains them in groups, and says what became of each, in their order.

    Args:
        configs: what Hydra composes of each job's overrides.

    Raises:
        CompactHydraException: the launcher's own settings are wrong.
    """
    setup_globals()
    _log_as_hydra(launcher)
    try:
        train = _trainer(launcher)
        log.info("Launching %d jobs", len(job_overrides))
        jobs_given = zip(job_overrides, configs, strict=True)
        returns = {i: _prepared(launcher, *given, i) for i, given in enumerate(jobs_given, first)}
        to_train = _to_be_trained(returns)
        groups = _grouped(to_train, launcher.group_size)
        groups = groups if launcher.submitit else _grafted(groups)
        for job in returns.values():
            if job.status == JobStatus.COMPLETED:
                job.return_value = None  # finished before, unless it is trained now
        for jobs, outcomes in zip(groups, train(groups) if groups else [], strict=True):
            for ready, outcome in zip(jobs, outcomes, strict=True):
                _set(returns[ready.number], outcome)
        if all(job.status == JobStatus.COMPLETED for job in returns.values()):
            _forget_groups({ready.job.folder.path for ready in to_train})  # nothing to resume
    except LorachainsError as error:
        raise CompactHydraException(f"error: {error}") from None
    finally:
        _log_as_hydra(launcher)
    return list(returns.values())


def _forget_groups(runs: Collection[Path]) -> None:
    """Deletes what groups of these runs' folders have left: another process may be training others beside them."""
    for groups in {run.parent / GROUPS for run in runs}:
        for folder in groups.glob("*"):
            if groups.parent / folder.name.rpartition("-")[0] in runs:
                shutil.rmtree(folder)
        with suppress(OSError):  # there are none, or there are others
            groups.rmdir()


def _log_as_hydra(launcher: "ReplicasLauncher") -> None:
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)


def _trainer(launcher: "ReplicasLauncher") -> Callable[[Sequence[Sequence[Ready]]], Iterable[Sequence[Outcome]]]:
    """What trains the groups, here or on a cluster."""
    if launcher.group_size is not None and launcher.group_size < 1:
        raise LorachainsError(f"hydra.launcher.group_size is {launcher.group_size}: give 1 or more, or null")
    if launcher.submitit is not None:
        return Cluster(launcher.submitit, Path(launcher.config.hydra.sweep.dir)).train
    return partial(map, train_group)


def _prepared(launcher: "ReplicasLauncher", overrides: Sequence[str], config: DictConfig, number: int) -> JobReturn:
    """The job's folder and config, made by Hydra as for a job that runs alone; a `Ready` if it is to be trained."""
    log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    try:
        return run_job(
            prepare, config, "hydra.sweep.dir", "hydra.sweep.subdir", launcher.hydra_context
        )  # fmt: skip
    finally:
        _log_as_hydra(launcher)


def _to_be_trained(returns: dict[int, JobReturn]) -> list[Ready]:
    """The jobs that are ready; one whose folder an earlier one has already fails."""
    by_folder: dict[Path, Ready] = {}
    for job in returns.values():
        ready = job.return_value if job.status == JobStatus.COMPLETED else None
        if ready is not None and (twin := by_folder.setdefault(ready.job.folder.path, ready)) is not ready:
            cause = f"its folder {twin.job.folder.path} is that of job {twin.number} too: give each settings of its own"
            _set(job, failure(ready, cause))
    return list(by_folder.values())


def _grouped(jobs: Sequence[Ready], most: int | None) -> list[list[Ready]]:
    """The groups, of at most so many jobs each; logs what keeps them apart."""
    settings = [ready.settings for ready in jobs]
    groups = group(settings)
    heads = [settings[members[0]] for members in groups]
    apart = {key for head in heads[1:] for key in why_apart(heads[0], head)}
    values = {key: of for key, of in differing(heads).items() if key in apart}
    for why in sorted({why for head in heads if (why := why_alone(head))}):
        log.info("%s: each such job runs alone", why)
    log.info("%d group%s%s", len(groups), "s" * (len(groups) != 1), f", kept apart by {told(values)}" if values else "")
    parts = [
        [jobs[index] for index in members[start : start + (most or len(members))]]
        for members in groups
        for start in range(0, len(members), most or len(members))
    ]
    return [part for part in map(_unfinished, parts) if part]


def _unfinished(part: Sequence[Ready]) -> list[Ready]:
    """What is left to be trained: all, if they have a checkpoint together from which some haven't come to their end."""
    left = [ready for ready in part if not ready.finished]
    together = left and len(part) > 1 and checkpoint_of([ready.job for ready in part]).is_file()
    return list(part) if together else left


def _grafted(groups: Sequence[Sequence[Ready]]) -> list[list[Ready]]:
    """The groups with those first that are others' trunk: the same runs up to the others' first knot (COLA §3.2)."""
    order, grafted = [], []
    for jobs in groups:
        found = [_trunk(jobs, others) for others in groups]
        trunk = next((index for index, is_trunk in enumerate(found) if is_trunk), None)
        order.append(trunk is not None)
        grafted.append([] if trunk is None else [ready.job for ready in groups[trunk]])
    ready = []
    for jobs, trunks in zip(groups, grafted, strict=True):
        branches = tuple(
            b[0].job.cfg.knots for b, of in zip(groups, grafted, strict=True) if of and of[0] is jobs[0].job
        )
        ready.append(
            [
                replace(one, job=replace(one.job, branches=branches, trunk=trunks[i] if trunks else None))
                for i, one in enumerate(jobs)
            ]
        )
    return [ready[i] for i in sorted(range(len(ready)), key=order.__getitem__)]


def _trunk(jobs: Sequence[Ready], others: Sequence[Ready]) -> bool:
    """Whether the others are the same runs, in the same order, without knots."""
    settings = [ready.settings for ready in others]
    return [trunk(ready.settings, settings) for ready in jobs] == list(range(len(others)))


def _set(job: JobReturn, outcome: Outcome) -> None:
    job.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    job.return_value = outcome
