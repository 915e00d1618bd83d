"""`sweeps/*.yaml`: one published table or figure each, as the runs that make it.

The keys of a file: `title`; `minutes`, by size, expected on one GPU (two CPU cores for `smoke`); `paper`, whose table
or figure it is, null for a study of our own; `model`, `data` and `each`, Hydra overrides of all jobs; `rows` and
`columns`, each label with the overrides that make it, or with a mapping (`overrides`, `metric`, `name`, `from`: see
`Part`); `metric`, of cells whose row and column name none; `select.over`, the settings among which validation
chooses, and `select.by` (metric, loss, or a key of `metrics.json`), how; `against`, rows or columns, each with the
one that it is compared with; `left_out`, rows or columns of the paper that are not made, each with the reason; `x`,
along which a figure is drawn. An override may be a sweep, as on the command line (`seed=0,1,2`), and a later one of
the same setting replaces an earlier one (row over column over `each`). `base` names a file in `sweeps/base/` with
keys in common, over which the table's own are laid. `sizes` has, by size, keys that replace the file's. Other keys
serve interpolations.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lorachains.composing import parsed, quoted
from lorachains.config import papers_dir, sweeps_dir
from lorachains.errors import LorachainsError

OmegaConf.register_new_resolver("sweeps", lambda: str(sweeps_dir()), replace=True)  # where a sweep's own data lies
OmegaConf.register_new_resolver(
    "data_root", lambda: quoted(given) if (given := os.environ.get("LORACHAINS_DATA_ROOT")) else "null", replace=True
)

SIZES = ("paper", "small", "smoke")

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A row or a column.

    Attributes:
        overrides: of all its jobs.
        metric: a key of `metrics.json`, in which `{row}` and `{column}` stand for the parts' names; `None`: the task's
            first.
        name: in metrics; empty for what is of all tasks together.
        start: settings that name the folder of another run, with which these begin: that of the same job, but for these
            overrides in place of its row's or column's own.
    """

    label: str
    overrides: Overrides
    metric: str | None
    name: str
    start: Mapping[str, Overrides] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A table or a figure in one size.

    Attributes:
        name: of its file.
        minutes: expected.
        paper: whose; `None` for a study of our own.
        over: the settings among which validation chooses.
        by: how it chooses.
        against: rows or columns, with the one that each is compared with.
        left_out: rows or columns of the paper that aren't made, with the reason.
        x: a setting or a metric along which results are drawn.
        overrides: of all jobs.
    """

    name: str
    size: str
    paper: str | None
    title: str
    minutes: float
    over: Sequence[str]
    by: str
    against: Mapping[str, str]
    left_out: Mapping[str, str]
    x: str | None
    overrides: Overrides
    rows: Sequence[Part]
    columns: Sequence[Part]
    metric: str | None

    @property
    def table(self) -> str:
        """Its name in `published`."""
        return self.name.removeprefix(f"{self.paper}-")

    @property
    def published(self) -> Path | None:
        """The paper's values."""
        return papers_dir() / f"{self.paper}.csv" if self.paper else None

    def jobs(self, row: Part, column: Part) -> list["Job"]:
        """The runs of one cell: seeds, and what validation chooses from."""
        jobs = expanded([*self.overrides, *column.overrides, *row.overrides])
        others = {
            key: expanded([*self.overrides, *(start if part is column else column.overrides),
                           *(start if part is row else row.overrides)])
            for part in (row, column) for key, start in part.start.items()
        }  # fmt: skip
        for key, own in others.items():
            if len(own) != len(jobs):
                raise LorachainsError(
                    f"{self.name}, {row.label}, {column.label}: {len(jobs)} runs, of which each begins with one of "
                    f"{len(own)} ({key}): give both the same seeds and the same choices"
                )
        return [Job(job, {key: own[i] for key, own in others.items()}) for i, job in enumerate(jobs)]

    def shown(self, row: Part, column: Part) -> str | None:
        """The metric of one cell."""
        metric = row.metric or column.metric or self.metric
        return metric and re.sub("/+", "/", metric.format(row=row.name, column=column.name))

    def grids(self) -> list[Overrides]:
        """The same jobs as few products, each as one would type it after `-m`; but those that begin with other runs."""
        rows, columns = ([part for part in parts if not part.start] for parts in (self.rows, self.columns))
        return list(
            dict.fromkeys(
                tuple(f"{key}={value}" for key, value in _by_key([*self.overrides, *column, *row]).items())
                for row, column in product(_joined(rows), _joined(columns))
            )
        )


@dataclass(frozen=True)
class Job:
    """What one run is made by.

    Attributes:
        start: settings that name the folder of another run, with that run's overrides.
    """

    overrides: Overrides
    start: Mapping[str, Overrides] = field(default_factory=dict)


def names() -> list[str]:
    """The tables and figures that there are."""
    return sorted(path.stem for path in sweeps_dir().glob("*.yaml"))


def load(name: str, size: str, keys: Mapping[str, Any] | None = None) -> Sweep:
    """The table or figure in that size.

    Args:
        keys: in place of the file's, of all its sizes.

    Raises:
        LorachainsError: there is none of that name or size, it has no such key, or its file is wrong.
    """
    if name not in names():
        raise LorachainsError(f"table is {name!r}: choose all or some of {', '.join(names())}")
    if size not in SIZES:
        raise LorachainsError(f"size is {size!r}: choose {', '.join(SIZES)}")
    return read(sweeps_dir() / f"{name}.yaml", size, keys)


def read(file: Path, size: str, keys: Mapping[str, Any] | None = None) -> Sweep:
    """The sweep of a file, in one size. Raises a LorachainsError if the file, or what is in its place, is wrong."""
    where = f"{file}, with keys in place of its own" if keys else str(file)
    try:
        settings = _settings(file, size, keys or {})
        sweep = Sweep(
            name=file.stem, size=size, paper=settings["paper"], title=settings["title"],
            minutes=_mapping(settings, "minutes")[size], over=_mapping(settings, "select")["over"],
            by=settings["select"]["by"],
            against=settings.get("against", {}), left_out=settings.get("left_out", {}), x=settings.get("x"),
            overrides=tuple(text for key in ("model", "data", "each") for text in _list(settings, key)),
            rows=_parts(settings["rows"]), columns=_parts(settings["columns"]), metric=settings.get("metric"),
        )  # fmt: skip
        return _checked(sweep)
    except KeyError as error:
        why = f"has no {error.args[0]!r} for size={size}: see lorachains/reproduce/sweeps.py"
        raise LorachainsError(f"{where}: {why}") from error
    except (OmegaConfBaseException, YAMLError, OSError, TypeError) as error:
        raise LorachainsError(f"{where}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _checked(sweep: Sweep) -> Sweep:
    if type(sweep.minutes) not in (int, float) or not sweep.minutes > 0:
        raise TypeError(f"minutes of {sweep.size} is {sweep.minutes!r}: give a number above 0")
    if sweep.by not in ("metric", "loss") and "/" not in str(sweep.by):
        raise TypeError(f"select.by is {sweep.by!r}: choose metric, loss, or a key of metrics.json, as val/accuracy")
    labels = {part.label for part in (*sweep.rows, *sweep.columns)}
    if unknown := [label for pair in sweep.against.items() for label in pair if label not in labels]:
        raise TypeError(f"against names {unknown[0]!r}, which is no row or column: {', '.join(sorted(labels))}")
    return sweep


def expanded(overrides: Sequence[str]) -> list[Overrides]:
    """The jobs of a multirun with these overrides, by Hydra's own rules.

    Raises:
        LorachainsError: Hydra can't read an override.
    """
    try:
        job = [parsed(override) for override in overrides]
    except OverrideParseException as error:
        raise LorachainsError(
            f"{error.override}: is no override that Hydra can read: correct it in the sweep"
        ) from error
    (jobs,) = BasicSweeper.split_arguments(job, None)
    return [tuple(job) for job in jobs]


def _settings(file: Path, size: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    own = OmegaConf.load(file)
    if not isinstance(own, DictConfig):
        raise LorachainsError(f"{file}: a sweep is a mapping of keys: see lorachains/reproduce/sweeps.py")
    base = OmegaConf.load(file.parent / "base" / f"{own.base}.yaml") if "base" in own else OmegaConf.create()
    whole = OmegaConf.merge(base, own)
    assert isinstance(whole, DictConfig)
    for key, value in whole.pop("sizes").get(size, {}).items():
        whole[key] = value
    for key, value in keys.items():
        if key not in whole:
            raise LorachainsError(f"keys has {key!r}, which {file.stem} hasn't: {', '.join(sorted(map(str, whole)))}")
        whole[key] = value
    settings: Any = OmegaConf.to_container(whole, resolve=True)
    return settings


def _mapping(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if not isinstance(settings[key], Mapping):
        raise TypeError(f"{key} is {settings[key]!r}: give a mapping")
    found: Mapping[str, Any] = settings[key]
    return found


def _list(settings: Mapping[str, Any], key: str) -> Overrides:
    if not isinstance(settings[key], str | list):
        raise TypeError(f"{key} is {settings[key]!r}: give a list of overrides")
    return _flat(settings[key])


def _parts(settings: Any) -> list[Part]:
    if not isinstance(settings, Mapping):
        raise TypeError("rows and columns are mappings from labels to overrides")
    return [
        _part(str(label), part if isinstance(part, Mapping) else {"overrides": part})
        for label, part in settings.items()
    ]


def _part(label: str, part: Mapping[str, Any]) -> Part:
    start = {key: _flat(overrides) for key, overrides in part.get("from", {}).items()}
    return Part(label, _flat(part.get("overrides", [])), part.get("metric"), part.get("name", label), start)


def _flat(overrides: Any) -> Overrides:
    """Overrides without the lists that interpolations have put in."""
    return (overrides,) if isinstance(overrides, str) else tuple(text for part in overrides for text in _flat(part))


def _joined(parts: Sequence[Part]) -> list[Overrides]:
    """The parts' overrides; of parts that differ in the value of one setting alone, one with all values."""
    groups: list[dict[str, dict[str, None]]] = []  # each setting's values, in order
    for part in parts:
        own = _by_key(part.overrides)
        for group in groups:
            others = [key for key in group if own.get(key) not in group[key]]
            several = [key for key in group if len(group[key]) > 1]
            if group.keys() == own.keys() and len({*others, *several}) <= 1:
                for key in others:
                    group[key][own[key]] = None
                break
        else:
            groups.append({key: {value: None} for key, value in own.items()})
    return [tuple(f"{key}={','.join(values)}" for key, values in group.items()) for group in groups]


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Each setting's value, of which the last counts."""
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}
