"""Groups as jobs of a cluster, through submitit."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException

from hydra_plugins.lorachains_replicas._jobs import Ready, described, failure, train_group
from lorachains.errors import LorachainsError
from lorachains.session import Outcome

log = logging.getLogger(__name__)


class Cluster:
    """submitit's AutoExecutor.

    Args:
        parameters: `cluster` and `folder` (default: `.submitit/%j` in `sweep_dir`), and those of `update_parameters`.

    Raises:
        LorachainsError: submitit isn't installed, or refuses the parameters.
    """

    def __init__(self, parameters: Mapping[str, Any], sweep_dir: Path):
        if not isinstance(parameters, Mapping):
            raise LorachainsError(f"hydra.launcher.submitit is {parameters!r}: give a mapping, as {{cluster:slurm}}")
        try:
            from submitit import AutoExecutor
        except ImportError as error:
            raise LorachainsError("hydra.launcher.submitit needs submitit: pip install 'lorachains[slurm]'") from error
        own = {"folder": sweep_dir / ".submitit" / "%j", "cluster": None}
        try:
            self.executor = AutoExecutor(**{key: parameters.get(key, default) for key, default in own.items()})
            self.executor.update_parameters(**{key: value for key, value in parameters.items() if key not in own})
        except Exception as error:  # submitit checks with all kinds of them
            raise LorachainsError(f"hydra.launcher.submitit is {dict(parameters)}: {_first_line(error)}") from error

    def train(self, groups: Sequence[Sequence[Ready]]) -> list[list[Outcome]]:
        """Submits all groups and waits for all: by group what became of each job.

        Raises:
            LorachainsError: the cluster doesn't take them.
        """
        try:
            jobs = self.executor.map_array(_portable, groups)
        except Exception as error:
            raise LorachainsError(f"hydra.launcher.submitit: can't submit the jobs: {_first_line(error)}") from error
        for job, group in zip(jobs, groups, strict=True):
            log.info("submitit job %s: %s", job.job_id, described(group))
        return [_waited(job, group) for job, group in zip(jobs, groups, strict=True)]


def _waited(job: Any, group: Sequence[Ready]) -> list[Outcome]:
    try:
        outcomes: list[Outcome] = job.result()
    except Exception as error:  # the process ended without a result: killed, out of time, …
        log.error("%s", error)
        return [failure(ready, f"submitit job {job.job_id} failed: see {job.paths.stderr}") for ready in group]
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            log.error("%s", outcome)
    return outcomes


def _portable(group: Sequence[Ready]) -> list[Outcome]:
    """`train_group` in another process: an error that may not pickle, nor keep its traceback, comes back as text."""
    return [
        RuntimeError("".join(traceback.format_exception(outcome)))
        if isinstance(outcome, Exception) and not isinstance(outcome, CompactHydraException)
        else outcome
        for outcome in train_group(group)
    ]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))
