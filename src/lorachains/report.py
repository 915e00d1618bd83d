"""`python -m lorachains.report FOLDER …`: a table of all finished runs in and under the folders."""

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: what was trained on what, and what came out."""

    model: str
    task: str
    method: str
    metrics: dict[str, Any]

    @property
    def group(self) -> tuple[str, str, str, int]:
        """Runs of one group differ in their seed and hyper-parameters only."""
        return self.model, self.task, self.method, self.metrics["train/links"]


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """All finished runs in and under the folders. A damaged one is named in a warning and left out."""
    runs = []
    for path in sorted(file.parent for folder in folders for file in folder.rglob("metrics.json")):
        try:
            runs.append(_read(RunFolder(path)))
        except (LorachainsError, OSError, KeyError) as error:
            log.warning("left out %s: %s", path, error)
    return runs


def table(runs: Sequence[Run]) -> Table:
    """Mean ± standard deviation over each group's runs, at the best epoch and at the last."""
    groups: dict[tuple[str, str, str, int], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.group].append(run)
    result = Table(
        "model", "task", "method", "links", "runs", "metric", "test, best epoch", "test, last epoch", "seconds"
    )
    for (model, task, method, links), members in sorted(groups.items()):
        metric = next(key for key in members[0].metrics if key.startswith("test/")).removeprefix("test/")
        columns = [f"test/{metric}", f"test_last/{metric}"]
        scores = [spread([100 * run.metrics[column] for run in members]) for column in columns]
        seconds = spread([run.metrics["run/seconds"] for run in members])
        result.add_row(model, task, method, str(links), str(len(members)), f"{metric} %", *scores, seconds)
    return result


def spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation`, or the one value."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _read(folder: RunFolder) -> Run:
    config: Any = OmegaConf.load(folder.config)
    method = config.method["_target_"].rsplit(".", 1)[-1].lower()
    tasks = config.data.tasks or [config.data.task]
    return Run(config.model.get("name", "tiny").rsplit("/", 1)[-1], "+".join(tasks), method, folder.read_metrics())


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
