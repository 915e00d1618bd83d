"""Runs as their folders hold them: settings from `config.yaml`, results from `metrics.json`."""

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lorachains.data.tasks import SELECTOR
from lorachains.errors import LorachainsError
from lorachains.run_folder import ELSEWHERE, RunFolder, flat

log = logging.getLogger(__name__)

NOT_RUNS = frozenset({".hydra", "wandb"})
"""Folders inside a run's that hold a `config.yaml` too."""
NUMBERS = frozenset(
    {
        "loss", "perplexity", "fallbacks", "right", "total", "tokens", "rows", "parameters", "rank", "links", "steps",
        "seconds", "bytes", "flops",
    }
)  # fmt: skip
"""Words in the names of metrics that are no shares of 1."""


@dataclass(frozen=True)
class Run:
    """A run: what was asked for, and what came out.

    Attributes:
        settings: the config, as one level of dotted keys.
        metrics: `metrics.json`; `None` while the run isn't finished.
        part: the one of its several tasks that is looked at, with a "/" at its end; or empty.
    """

    path: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    part: str = ""

    def value(self, key: str) -> Any:
        """What a row or a column is made of: a setting, `task`, `model`, or a metric if the key has a "/".

        A section that names a class (`method`, `knots`, `optim.optimizer`) has the class's name as its value, in the
        spelling of the command line. What the run doesn't have is `None`.
        """
        if key == "task":
            return self.part.rstrip("/") or "+".join(self.tasks)
        if key == "model":
            return str(self.settings.get("model.name", "tiny")).rsplit("/", 1)[-1]
        if "/" in key:
            return (self.metrics or {}).get(key)
        target = self.settings.get(f"{key}._target_")
        return self.settings.get(key) if target is None else short(target)

    @property
    def tasks(self) -> list[str]:
        """The names of what it was trained on."""
        given = self.settings.get("data.tasks") or [self.settings["data.task"] or short(self.settings["data._target_"])]
        return list(given)

    def result(self, split: str, metric: str) -> float | None:
        """A metric of one split ("test", "test_last", "val"); of the first also any other key of `metrics.json`."""
        found = self.metrics or {}
        return found.get(f"{split}/{self.part}{metric}", found.get(metric) if split == "test" else None)

    @property
    def validation_loss(self) -> float | None:
        """At the best epoch; of a run with several adapters the mean of those that serve a task, each at its own."""
        if (loss := self.result("val", "loss")) is not None or self.part:
            return loss
        own = {key: value for key, value in (self.metrics or {}).items() if re.fullmatch("val/[^/]+/loss", key)}
        own.pop(f"val/{SELECTOR}/loss", None)
        return fmean(own.values()) if own else None

    def metric(self) -> str | None:
        """The name of the test metric that selects: the first that `metrics.json` gives, loss where nothing was graded.

        `None` if there is none.
        """
        start = f"test/{self.part}"
        names = [key.removeprefix(start) for key in self.metrics or {} if key.startswith(start)]
        own = [name for name in names if "/" not in name]
        return next(filter(is_share, own), "loss" if "loss" in own else None)


def short(target: str) -> str:
    """A class's path as the command line spells its name: `lorachains.methods.ZeroShot` is zero_shot."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", target.rsplit(".", 1)[-1]).lower()


def is_share(metric: str) -> bool:
    """Whether the metric is a share of 1, of which more is better; losses, perplexities, counts and costs are not."""
    return not NUMBERS & set(re.split(r"[/_]", metric))


def read_runs(
    folders: Iterable[Path], ignore: Iterable[str] = (), split_tasks: bool = False
) -> tuple[list[Run], dict[Path, str]]:
    """All runs in and under the folders, also the unfinished ones.

    Args:
        ignore: settings in which one and the same run may differ, beside those that say where it was computed.
        split_tasks: look at each task of a run with several as at a run of its own.

    Returns:
        The runs, and why which folders were left out: they are damaged, no run of ours, or there a second time.

    Raises:
        LorachainsError: a folder doesn't exist, or there is no finished run.
    """
    folders = list(folders)
    runs, left_out, seen = list[Run](), dict[Path, str](), dict[str, Path]()
    for path in sorted(_run_folders(folders)):
        try:
            run = _read(RunFolder(path))
        except (LorachainsError, OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
            left_out[path] = next(iter(str(error).splitlines()), type(error).__name__).replace(f"{path}/", "")
            continue
        own = {k: v for k, v in run.settings.items() if k not in ELSEWHERE.union(ignore)}
        if (first := seen.setdefault(json.dumps(own, sort_keys=True, default=str), path)) != path:
            left_out[path] = f"the same settings as {first}"
        else:
            runs += _parts(run) if split_tasks else [run]
    for path, reason in left_out.items():
        log.warning("left out %s: %s", path, reason)
    if not any(run.metrics for run in runs):
        where = ", ".join(map(str, folders)) or "no folder is given"
        raise LorachainsError(f"{where}: no finished run there: a run's folder holds config.yaml and metrics.json")
    return runs, left_out


def _run_folders(folders: Iterable[Path]) -> set[Path]:
    found = set()
    for folder in folders:
        if not folder.is_dir():
            raise LorachainsError(f"{folder} is no folder: give folders of runs, before all settings")
        for name in ("config.yaml", "metrics.json"):
            files = (file.relative_to(folder) for file in folder.rglob(name))
            found |= {(folder / file.parent).resolve() for file in files if not NOT_RUNS.intersection(file.parts)}
    return {_from_here(path) for path in found}


def _from_here(path: Path) -> Path:
    """The shorter way to write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _read(folder: RunFolder) -> Run:
    if not folder.config.is_file():
        raise LorachainsError("config.yaml is missing: what was run is unknown")
    config = OmegaConf.load(folder.config)
    settings = flat(OmegaConf.to_container(config))
    for key in ("method._target_", "data.task", "seed"):
        if key not in settings:
            raise LorachainsError(f"config.yaml has no {key}: it is not that of a training run")
    if not folder.metrics.is_file():
        return Run(folder.path, settings, None)
    metrics = folder.read_metrics()
    if wrong := next(_wrong(metrics), None):
        raise LorachainsError(f"metrics.json {wrong}")
    return Run(folder.path, settings, metrics)


def _wrong(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What can't be in a training run's metrics."""
    if "run/seconds" not in metrics:
        yield "has no run/seconds: it is not that of a training run"
    if not any(key.startswith("test/") for key in metrics):
        yield "has no test metric"
    for key, value in metrics.items():
        split = key.split("/", 1)[0]
        if type(value) not in (int, float) or not math.isfinite(value):
            if split in ("test", "test_last", "val", "run"):
                yield f"says that {key} is {value!r}: a finite number is expected"
        elif split in ("test", "test_last", "val") and is_share(key) and not 0 <= value <= 1:
            yield f"says that {key} is {value!r}: a share from 0 to 1 is expected"


def _parts(run: Run) -> Sequence[Run]:
    return [replace(run, part=f"{task}/") for task in run.tasks] if len(run.tasks) > 1 else [run]
