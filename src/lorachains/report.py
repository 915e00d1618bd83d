"""`python -m lorachains.report FOLDER …`: a table of all finished runs in and under the folders."""

import argparse
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Column, Table

from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder, flat

log = logging.getLogger(__name__)


SEEDS = ("seed", "data.seed", "data.order_seed", "method.seed")
"""What runs of one group may differ in."""


@dataclass(frozen=True)
class Run:
    """A finished run: what was trained on what, with which settings, and what came out."""

    model: str
    task: str
    method: str
    settings: dict[str, Any]
    metrics: dict[str, Any]


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """All finished runs in and under the folders. A damaged one is named in a warning and left out."""
    runs = []
    for path in sorted(file.parent for folder in folders for file in folder.rglob("metrics.json")):
        try:
            runs.append(_read(RunFolder(path)))
        except (LorachainsError, OSError, KeyError, OmegaConfBaseException) as error:
            log.warning("left out %s: %s", path, next(iter(str(error).splitlines()), type(error).__name__))
    return runs


def table(runs: Sequence[Run]) -> Table:
    """Mean ± standard deviation over runs that differ in their seeds alone, at the best epoch and at the last."""
    wide = Column("settings", overflow="fold")
    result = Table("model", "task", "method", wide, "links", "runs", "metric", "best epoch", "last epoch", "seconds")
    kinds: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        kinds[run.model, run.task, run.method].append(run)
    for kind, members in sorted(kinds.items()):
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in members:
            groups[_differing(run, members)].append(run)
        for settings, group in sorted(groups.items()):
            result.add_row(*kind, settings, *_cells(group))
    return result


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± standard deviation`, or the one value."""
    more = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{more}"


def _cells(group: list[Run]) -> list[str]:
    metric = next(key for key in group[0].metrics if key.startswith("test/")).removeprefix("test/")
    if metric == "loss":  # nothing was graded
        factor, shown, digits = 1, "test loss (nats)", 3
    else:
        factor, shown, digits = 100, f"test {metric} %", 1
    scores = [
        spread([factor * run.metrics[f"{split}/{metric}"] for run in group], digits) for split in ("test", "test_last")
    ]
    seconds = spread([run.metrics["run/seconds"] for run in group])
    return [str(group[0].metrics.get("train/links", "")), str(len(group)), shown, *scores, seconds]


def _differing(run: Run, others: list[Run]) -> str:
    """The run's settings that are not the same in all of the others, seeds apart."""
    return " ".join(
        f"{key}={value}"
        for key, value in sorted(run.settings.items())
        if key not in SEEDS and not key.startswith("method.") and any(o.settings.get(key) != value for o in others)
    )


def _read(folder: RunFolder) -> Run:
    config: Any = OmegaConf.load(folder.config)
    metrics = folder.read_metrics()
    if "run/seconds" not in metrics:
        raise LorachainsError("metrics.json has no run/seconds")
    kind = config.method["_target_"].rsplit(".", 1)[-1]
    method = re.sub(r"(?<=.)(?=[A-Z])", "_", kind).lower()  # ZeroShot is method=zero_shot
    tasks = config.data.tasks or [config.data.task or _set_name(config.data)]
    settings = flat(OmegaConf.to_container(config))
    return Run(config.model.get("name", "tiny").rsplit("/", 1)[-1], "+".join(tasks), method, settings, metrics)


def _set_name(data: Any) -> str:
    """Of a data set all of whose tasks were trained on: the last word of what made it."""
    return str(data["_target_"]).rsplit(".", 1)[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if there is no finished run."""
    parser = argparse.ArgumentParser(prog="python -m lorachains.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    runs = read_runs(parser.parse_args(arguments).folders)
    if not runs:
        print("error: no finished run there: a run's folder holds config.yaml and metrics.json", file=sys.stderr)
        return 1
    Console(width=None if sys.stdout.isatty() else 140).print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
