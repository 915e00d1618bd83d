"""What the entry points share: the run folder's name, and errors told in one line."""

import functools
import gc
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorachains.errors import LorachainsError, check_switch

log = logging.getLogger(__name__)

UNHASHED = ("hydra", "resume", "overwrite", "logger", "checkpoint_every", "checkpoint_seconds")
"""Top-level settings that don't change what a run computes."""


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings that a run's result depends on."""
    return {
        str(key): OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
        for key in cfg
        if key not in UNHASHED
    }


def run_name(_root_: DictConfig) -> str:
    """`<method>-<model>-<task>-seed<seed>-<hash of all settings>`: the same settings, the same name.

    Where no task is named, the data set's name stands for all that it has.
    Registered as the OmegaConf resolver `run_name`.
    """
    settings = settings_of(_root_)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    choices = _root_.hydra.runtime.choices
    tasks = "+".join(settings["data"]["tasks"] or [settings["data"]["task"] or choices.data])[:40]
    return f"{choices.method}-{choices.model}-{tasks}-seed{settings['seed']}-{digest}"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)

STARTED = time.strftime("%Y-%m-%d_%H-%M-%S")
OmegaConf.register_new_resolver("started", lambda: STARTED, replace=True)  # the same for all jobs of a multirun


@contextmanager
def quick_imports() -> Iterator[None]:
    """For imports of thousands of modules: keeps Python's garbage collector from looking through what they define.

    It rests in here, which takes a quarter from their time, and leaves alone for good what was imported, which else
    it would take to pieces at the end of the process, for a second or more.
    """
    collects, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if collects:
            gc.enable()


def one_line_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turns an error of the input, however deep it was raised, into one line on standard error and exit code 1.

    The traceback goes to the run's log at debug level (`hydra.verbose=true` shows it). A multirun goes on with its
    other jobs and exits with 1 after the last one.
    """

    @functools.wraps(task)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except Exception as error:
            cause = told(error)
            if cause is None:
                raise
            log.debug("traceback", exc_info=error)
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                print(f"error: {cause}", file=sys.stderr)
                sys.exit(1)
            message = f"error in job {HydraConfig.get().job.override_dirname}: {cause}"
            log.error(message)
            raise CompactHydraException(message) from None

    return wrapped


def check_settings(cfg: DictConfig) -> None:
    """Checks the settings at the top of the config, which no part of it takes.

    Raises:
        LorachainsError: names the setting, its value, and what is expected.
    """
    for key, least, most in (("seed", 0, 2**32 - 1), ("checkpoint_every", 1, sys.maxsize)):
        if type(cfg[key]) is not int or not least <= cfg[key] <= most:
            raise LorachainsError(f"{key} is {cfg[key]!r}: give a whole number from {least} to {most}")
    if not isinstance(cfg.checkpoint_seconds, int | float) or not cfg.checkpoint_seconds >= 0:
        raise LorachainsError(f"checkpoint_seconds is {cfg.checkpoint_seconds!r}: give a number, 0 or more")
    if not isinstance(cfg.start_from, str | None):
        raise LorachainsError(f"start_from is {cfg.start_from!r}: give a folder's path, as ./NAME")
    if cfg.start_from is not None and "start_from" not in cfg.method:
        raise LorachainsError(
            f"start_from is {cfg.start_from}, but {cfg.method._target_} trains no chain: leave it out"
        )
    if cfg.start_from is None and cfg.start_links is not None:
        raise LorachainsError(f"start_links is {cfg.start_links!r}, but start_from names no chain: set it too")
    for key in ("resume", "overwrite"):
        check_switch(key, cfg[key])
    _tell_ignored(cfg)


def _tell_ignored(cfg: DictConfig) -> None:
    """Warns of settings given on the command line that the method doesn't read. A sweep over methods may have some."""
    given = {override.lstrip("+~").partition("=")[0].split(".")[0] for override in HydraConfig.get().overrides.task}
    for section in ("adapter", "knots", "optim"):
        if section in given and section not in cfg.method:
            log.warning("%s is given, but %s reads none of it", section, cfg.method["_target_"])


def told(error: BaseException) -> str | None:
    """What to tell the user of an error that the input has caused; `None` if it is a fault of the program."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for link in chain:
        if isinstance(link, LorachainsError):
            return str(link)
        if isinstance(link, OSError) and link.filename is not None:
            return f"{link.filename}: {link.strerror}: correct the path, or what lies there"
    if isinstance(error, InstantiationException):  # a library refuses what the config gives it
        key = str(error).rpartition("full_key: ")[2]
        return f"{key}: {_first_line(chain[-1])}: correct the setting (hydra.verbose=true logs where it was refused)"
    return _first_line(error) if isinstance(error, OmegaConfBaseException) else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
