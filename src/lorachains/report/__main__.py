"""`python -m lorachains.report FOLDER …`: tables and figures of all runs in the folders. See docs/report.md."""

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.report.assembly import Report, make_report, write_report
from lorachains.report.formats import terminal
from lorachains.report.layout import Layout
from lorachains.report.reading import read_runs


def report(folders: Sequence[Path], cfg: DictConfig) -> Report:
    """What the settings of conf/report.yaml ask for, of the runs in and under the folders."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    check_kinds(settings)
    names = ("rows", "columns", "seeds", "metric", "n_seeds", "ignore", "labels")
    layout = Layout(**{name: settings[name] for name in names}, **settings["select"])
    runs, left_out = read_runs(folders, settings["ignore"], settings["split_tasks"])
    given = {name: settings[name] for name in ("title", "also", "baseline", "x", "table")}
    published = settings["published"] and Path(settings["published"])
    return make_report(runs, left_out, layout, published=published, **given)


def check_kinds(settings: dict[str, Any]) -> None:
    """Checks that what should be a list is one, and what should be settings too.

    Raises:
        LorachainsError: names the setting, its value, and what is expected.
    """
    named = settings | {"select.over": settings["select"]["over"]}
    for key in ("rows", "columns", "also", "seeds", "ignore", "select.over"):
        value = named[key]
        if not isinstance(value, list) and not (key == "rows" and value is None):
            raise LorachainsError(f"{key} is {value!r}: give a list, as [method]")
    if type(settings["split_tasks"]) is not bool:
        raise LorachainsError(f"split_tasks is {settings['split_tasks']!r}: give true or false")
    for key, example in (
        ("baseline", "settings, as {method: lora}"),
        ("labels", "labels and what to write, as {cola: COLA}"),
    ):
        if settings[key] is not None and not isinstance(settings[key], dict):
            raise LorachainsError(f"{key} is {settings[key]!r}: give {example}")


def main() -> None:
    """The command line: folders, then settings."""
    folders = list(
        takewhile(lambda text: not text.startswith("-") and (Path(text).exists() or "=" not in text), sys.argv[1:])
    )
    del sys.argv[1 : 1 + len(folders)]

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="report")
    @one_line_errors
    def command(cfg: DictConfig) -> None:
        made = report([Path(folder) for folder in folders], cfg)
        console = Console(width=None if sys.stdout.isatty() else 140)
        for table in made.tables:
            console.print(terminal(table))
        if cfg.output:
            write_report(made, Path(cfg.output))
            console.print(f"{cfg.output}/report.html, and the same as Markdown, LaTeX, CSV, PNG and SVG beside it")

    command()


if __name__ == "__main__":
    main()
