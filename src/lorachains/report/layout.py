"""How runs become rows and columns: by which settings, under which labels."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorachains.errors import LorachainsError
from lorachains.report.reading import Run, short
from lorachains.run_folder import ELSEWHERE


@dataclass(frozen=True)
class Layout:
    """What a table is made of. See conf/report.yaml for each field.

    Raises:
        LorachainsError: a field has a value that it can't have.
    """

    rows: Sequence[str] | None = None
    columns: Sequence[str] = ("task",)
    seeds: Sequence[str] = ("seed", "data.seed", "data.order_seed")
    over: Sequence[str] = ("optim.lr",)
    by: str = "metric"
    metric: str | None = None
    n_seeds: int | None = None
    ignore: Sequence[str] = ()
    labels: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.by not in ("metric", "loss") and not str(self.by).startswith("val/"):
            raise LorachainsError(
                f"select.by is {self.by!r}: choose metric or loss (of the validation set), or name a metric (val/…)"
            )
        if self.n_seeds is not None and (type(self.n_seeds) is not int or self.n_seeds < 1):
            raise LorachainsError(f"n_seeds is {self.n_seeds!r}: give a whole number, 1 or more, or null")
        for name in ("columns", "seeds"):
            if not getattr(self, name):
                raise LorachainsError(f"{name} is empty: name at least one setting")

    def seed(self, run: Run) -> tuple[str, ...]:
        """What tells apart the runs of which a mean is taken."""
        return tuple(str(run.value(key)) for key in self.seeds)

    def candidate(self, run: Run) -> str:
        """The settings that validation chooses."""
        return " ".join(f"{key}={run.value(key)}" for key in self._over if run.value(key) is not None)

    def row(self, run: Run, keys: Sequence[str]) -> str:
        """The label of the row that the run belongs to."""
        return self._label(run, keys)

    def column(self, run: Run) -> str:
        """The label of the column that the run belongs to."""
        return self._label(run, self.columns)

    def row_keys(self, runs: Sequence[Run]) -> dict[tuple[str, str], list[str]]:
        """What the rows of each model and method are made of: `rows`, or the method and all settings that differ.

        Settings that differ between tasks alone make no rows.

        Raises:
            LorachainsError: no run has one of the named settings.
        """
        for key in [*(self.rows or []), *self.columns]:
            if all(run.value(key) is None for run in runs):
                raise LorachainsError(f"no run has the setting {key}, of which rows or columns are to be made")
        models = {run.value("model") for run in runs}
        groups: dict[tuple[str, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            groups[kind(run)][self.column(run)].append(run)
        if self.rows is not None:
            return {group: list(self.rows) for group in groups}
        start = ["model", "method"] if len(models) > 1 else ["method"]
        return {
            group: start + sorted({key for own in columns.values() for key in self.differing(own)})
            for group, columns in groups.items()
        }

    def differing(self, runs: Sequence[Run]) -> list[str]:
        """The settings in which the runs differ, apart from seeds and from what is chosen or ignored."""
        keys = {key for run in runs for key in run.settings}
        out = ELSEWHERE.union(self.ignore, self.seeds, self._over, self.columns)
        # The method's config repeats others (`method.optim.lr`, `method.seed`).
        own = [k for k in keys - out if not (k.startswith("method.") and k.removeprefix("method.") in keys)]
        own = [k for k in own if k != "method._target_"]
        return sorted(k for k in own if any(run.settings.get(k) != runs[0].settings.get(k) for run in runs))

    @property
    def _over(self) -> list[str]:
        return [key for key in self.over if key not in (self.rows or []) and key not in self.columns]

    def _label(self, run: Run, keys: Sequence[str]) -> str:
        label = " ".join(text for key in keys if (text := _told(run, key)))
        return (self.labels or {}).get(label, label)


def kind(run: Run) -> tuple[str, str]:
    """Model and method."""
    return str(run.value("model")), str(run.value("method"))


def natural(label: str) -> list[tuple[bool, float, str]]:
    """Sorts labels by the numbers in them as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", label)
    return [(True, float(p), "") if i % 2 else (False, 0.0, p) for i, p in enumerate(parts)]


def _told(run: Run, key: str) -> str:
    """A part of a label: names as they are, numbers with the setting that they are of."""
    value = run.value(key)
    if value is None:
        return ""
    named = key in ("task", "model") or f"{key}._target_" in run.settings
    return str(value) if named else f"{key.removesuffix('._target_')}={_text(key, value)}"


def _text(key: str, value: Any) -> str:
    return short(str(value)) if key.endswith("._target_") else str(value).replace(" ", "")
