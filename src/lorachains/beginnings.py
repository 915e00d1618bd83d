"""Runs that begin with what other runs have learned: whether these are of the same rows, and stay where they are."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder

log = logging.getLogger(__name__)

PARTING = ("seed", "split")
"""Settings of data that say in which split a row is."""
SHOWN = ("_target_", "path", "hub", "language", "max_length", "template", "superni")
"""Those that say which rows there are, and what of them a model reads."""


def check_start(cfg: DictConfig) -> None:
    """Compares a run's rows with those of the chain whose experts it takes over (`method.start`).

    Raises:
        LorachainsError: they are parted otherwise, so that experts would be tested on what they have learned.
    """
    start = cfg.method.get("start")
    if not isinstance(start, str) or not RunFolder(Path(start)).config.is_file():
        return  # which the method refuses, if it is no chain
    before, now = RunFolder(Path(start)).read_config().data, cfg.data
    for key in (key for key in (*PARTING, *SHOWN) if before.get(key) != now.get(key)):
        found = f"method.start={start} was trained with data.{key}={before.get(key)}, this run has {now.get(key)}"
        if key in PARTING:
            raise LorachainsError(f"{found}: its experts may have learned this run's test rows, give the same")
        log.warning("%s: are its experts' rows and prompts the same?", found)


def check_apart(cfg: DictConfig, folder: RunFolder) -> None:
    """Raises `LorachainsError` where a run would begin with what is in its own folder, which is to be overwritten."""
    given = {"start_from": cfg.start_from} | {f"method.{key}": cfg.method.get(key) for key in ("start", "experts")}
    if own := [key for key, value in given.items() if _within(value, folder.path)]:
        raise LorachainsError(
            f"{own[0]} lies in this run's own folder, which overwrite=true empties: choose another hydra.run.dir"
        )


def _within(value: Any, folder: Path) -> bool:
    """Whether a setting names a folder within another one."""
    return isinstance(value, str) and Path(value).resolve().is_relative_to(folder.resolve())
