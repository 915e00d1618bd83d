"""`python -m lorachains.reproduce table=cola-table1 size=small`: makes what is missing of a table, and shows it."""

import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError, check_positive
from lorachains.report.assembly import write_report
from lorachains.reproduce import sweeps, wandb_sweep
from lorachains.reproduce.overview import Overview
from lorachains.reproduce.passes import Launch, make
from lorachains.reproduce.reports import report
from lorachains.reproduce.runs import Composer, Table
from lorachains.reproduce.sweeps import Sweep

log = logging.getLogger(__name__)

NAMED = 5
"""So many of the runs that were given up for one reason are named; all have their `failure.txt`."""


def reproduce(tables: Sequence[Table], launch: Launch, command: str) -> bool:
    """Makes the missing runs of the tables in `launch.root`; whether all are finished then.

    Raises:
        LorachainsError: another process is making runs there.
    """
    root = launch.root
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):
            for table in tables:
                table.write(root, command)
            for run in {run.name: run for table in tables for run in table.runs}.values():
                run.set_damaged_aside()
            console = Console()
            minutes = sum(table.sweep.minutes for table in tables)
            with Overview(tables, minutes, console) as overview:
                make(overview.runs, launch, overview.show)
    except Timeout:
        raise LorachainsError(f"another process is making runs in {root}: wait for it, or give another root") from None
    failed = defaultdict[str, list[str]](list)
    for run in overview.runs:
        if not run.finished:
            failed[run.failure or "unknown"].append(run.name)
    for reason, names in failed.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        print(f"given up, {len(names)} runs: {reason}: {', '.join(names[:NAMED])}{more}", file=sys.stderr)
    return not failed


def check(cfg: DictConfig) -> None:
    """Raises `LorachainsError` for settings that make no sense."""
    names = [cfg.table] if isinstance(cfg.table, str) else cfg.table
    if not (isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names)):
        raise LorachainsError(f"table is {cfg.table!r}: give a name, several as [cola-table1,cola-table3], or all")
    if isinstance(cfg.overrides, str) or not isinstance(cfg.overrides, Sequence):
        raise LorachainsError(f"overrides is {cfg.overrides!r}: give a list, as ['trainer.devices=2']")
    if not isinstance(cfg.root, str):
        raise LorachainsError(f"root is {cfg.root!r}: give a folder")
    try:
        hydra.compose("train", overrides=[f"hydra/launcher={cfg.launcher}"], return_hydra_config=True)
    except HydraException:
        raise LorachainsError(f"launcher is {cfg.launcher!r}: give one of Hydra's, as replicas or basic") from None
    for key in ("workers",) if cfg.group_size is None else ("workers", "group_size"):
        check_positive(key, cfg[key])
    if cfg.group_size is not None and cfg.launcher != "replicas":
        raise LorachainsError(
            f"group_size is {cfg.group_size}, but launcher={cfg.launcher} has no groups: leave it out"
        )


def chosen(cfg: DictConfig) -> list[Sweep]:
    """The sweeps that `table` and `size` name."""
    asked = sweeps.names() if cfg.table == "all" else [cfg.table] if isinstance(cfg.table, str) else list(cfg.table)
    if cfg["keys"] is not None and not OmegaConf.is_dict(cfg["keys"]):
        raise LorachainsError(f"keys is {cfg['keys']!r}: give a mapping, as {{data: ['data=instructions']}}")
    keys: Any = cfg["keys"] and OmegaConf.to_container(cfg["keys"])  # which refer to the sweep's, not to one another
    return [sweeps.load(name, cfg.size, keys) for name in asked]


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="reproduce")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """The command line."""
    check(cfg)
    tables = chosen(cfg)
    if cfg.wandb is not None:
        files = [file for sweep in tables for file in wandb_sweep.write(sweep, Path(cfg.wandb))]
        if not files:
            raise LorachainsError("all runs begin with others, for which W&B sweeps can't wait: leave wandb= out")
        print(*files, sep="\n")
        return
    launch = Launch(Path(cfg.root), cfg.launcher, cfg.workers, cfg.group_size)
    try:
        composer = Composer(launch.root, cfg.overrides)
        log.info("composing the runs of %s", ", ".join(sweep.name for sweep in tables))
        found = [composer.table(sweep) for sweep in tables]
        said: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # as it was, `keys` may refer to others
        command = " ".join(["python -m lorachains.reproduce", *said])
        whole = reproduce(found, launch, command)
        reported = [show(table, launch.root) for table in found if any(run.finished for run in table.runs)]
    except KeyboardInterrupt:
        print(f"stopped: nothing is lost, the same command goes on ({launch.root})", file=sys.stderr)
        sys.exit(130)
    sys.exit(0 if whole and all(reported) else 1)


def show(table: Table, root: Path) -> bool:
    """Writes a table's report beside its runs; whether it could be made. Why not is told: others may follow."""
    name = table.sweep.name
    try:
        write_report(report(table), root / name)
    except LorachainsError as error:
        print(f"error: {name}: {error}", file=sys.stderr)
        return False
    print(f"{root / name / 'report.html'}: {table.sweep.title}")
    return True


if __name__ == "__main__":
    main()
