"""A job of the multirun, made ready by Hydra as if it were to run alone, and its group, trained as one bank.

All of it is plain data, so that a group can be sent to another process.
"""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, env_override
from hydra.errors import CompactHydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lorachains.cli import check_settings, one_line_errors, settings_of
from lorachains.cli import told as told_error
from lorachains.errors import LorachainsError
from lorachains.grouping import differing, told
from lorachains.jobs import Job, train_jobs
from lorachains.run_folder import RunFolder
from lorachains.session import Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A job that is ready to be trained.

    Attributes:
        number: Hydra's, in the multirun.
        name: the overrides that make it this job.
        logging: Hydra's `job_logging`, resolved.
        verbose: Hydra's.
        env: environment variables that Hydra is to set for the job.
        finished: whether it was trained before, and is to be resumed.
    """

    job: Job
    number: int
    name: str
    logging: dict[str, Any]
    verbose: Any
    env: dict[str, str]
    finished: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which jobs can be a group: their settings, and environment variables, which a process has."""
        return settings_of(self.job.cfg) | {"hydra": {"job": {"env_set": self.env}}}


@one_line_errors
def prepare(cfg: DictConfig) -> Ready:
    """The task that Hydra runs for each job of the multirun: doesn't train it yet.

    Raises:
        CompactHydraException: names the job and what is wrong with its settings.
    """
    hydra = HydraConfig.get()
    _check(cfg, hydra.job.chdir)
    OmegaConf.resolve(cfg)
    instantiate(cfg.method, _partial_=True)  # refuses wrong settings now, when they don't yet stop a whole bank
    folder = RunFolder(Path(hydra.runtime.output_dir))
    finished = bool(cfg.resume) and folder.finished(settings_of(cfg))
    if finished:
        log.info("%s is finished: nothing to resume", folder.path)
    # What `hydra` holds is typed as its dataclasses; it is OmegaConf's nodes.
    logs, verbose, env = (_plain(node) for node in (hydra.job_logging, hydra.verbose, hydra.job.env_set))
    return Ready(Job(cfg, folder), int(hydra.job.num), hydra.job.override_dirname, logs, verbose, env, finished)


def train_group(group: Sequence[Ready]) -> list[Outcome]:
    """Trains the jobs as one bank, in their environment, with the log in each job's own file.

    Returns:
        By job. An error that the input has caused is a CompactHydraException that names the job.
    """
    with env_override(group[0].env):
        _log_to_each(group)
        log.info("%s", described(group))
        try:
            outcomes = train_jobs([ready.job for ready in group])
        except Exception as error:
            outcomes = [error] * len(group)
        return _told_of_each(group, outcomes)


def described(group: Sequence[Ready]) -> str:
    """`jobs 0, 1, 2 as one bank, differing in seed (0, 1, 2)`."""
    if len(group) == 1:
        return f"job {group[0].number} alone"
    numbers = ", ".join(str(ready.number) for ready in group)
    return f"jobs {numbers} as one bank, differing in {told(differing([ready.settings for ready in group]))}"


def failure(ready: Ready, cause: object) -> CompactHydraException:
    """Logs why a job failed, and gives it as the one line that Hydra ends with."""
    message = f"error in job {ready.name}: {cause}"
    log.error("%s", message)
    return CompactHydraException(message)


def _check(cfg: DictConfig, chdir: bool | None) -> None:
    if "trainer" not in cfg:
        raise LorachainsError("hydra/launcher=replicas trains: take it away, or run lorachains.train")
    if chdir:
        raise LorachainsError("hydra.job.chdir is true: jobs trained together have one working directory, give false")
    check_settings(cfg)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _log_to_each(group: Sequence[Ready]) -> None:
    verbose = group[0].verbose
    configure_log(
        OmegaConf.create(_logging(group)), OmegaConf.create(verbose) if isinstance(verbose, list) else verbose
    )


def _logging(group: Sequence[Ready]) -> dict[str, Any]:
    """The first job's logging, to the others' files as well."""
    config = deepcopy(group[0].logging)
    if not config["root"]:
        return config
    for ready in group[1:]:
        for name, handler in _files(ready.logging).items():
            config["handlers"][f"{name}-{ready.number}"] = handler
            for logger in (config["root"], *config.get("loggers", {}).values()):
                if name in logger.get("handlers", ()):
                    logger["handlers"].append(f"{name}-{ready.number}")
    return config


def _files(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: handler for name, handler in config.get("handlers", {}).items() if "filename" in handler}


def _told_of_each(group: Sequence[Ready], outcomes: Sequence[Outcome]) -> list[Outcome]:
    for error in {id(outcome): outcome for outcome in outcomes if isinstance(outcome, Exception)}.values():
        log.log(logging.ERROR if told_error(error) is None else logging.DEBUG, "traceback", exc_info=error)
        clear_frames(error.__traceback__)  # they hold the bank, whose memory the next group needs
    return [_told_of(ready, outcome) for ready, outcome in zip(group, outcomes, strict=True)]


def _told_of(ready: Ready, outcome: Outcome) -> Outcome:
    if isinstance(outcome, Exception):
        cause = told_error(outcome)
        error = failure(ready, repr(outcome) if cause is None else cause)
        return outcome if cause is None else error
    scores = (f"{key} {value:.4g}" for key, value in outcome.items() if key.startswith(("test", "val")))
    log.info("%s: %s", ready.job.folder.path, ", ".join(scores))
    return outcome
