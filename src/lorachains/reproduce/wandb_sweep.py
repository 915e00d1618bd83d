"""A table's jobs as W&B sweeps: `wandb sweep FILE`, then `wandb agent …` on as many machines as there are."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lorachains.reproduce.sweeps import Overrides, Sweep

log = logging.getLogger(__name__)


def write(sweep: Sweep, folder: Path) -> list[Path]:
    """Writes `<table>-<size>-<number>.yaml`, one for each product of settings that the table is made of.

    Rows and columns whose runs begin with other runs are left out: W&B has no order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if after := [part.label for part in (*sweep.rows, *sweep.columns) if part.start]:
        log.warning("%s: left out, since their runs begin with others': %s", sweep.name, ", ".join(after))
    files = []
    for number, grid in enumerate(sweep.grids(), 1):
        files.append(folder / f"{sweep.name}-{sweep.size}-{number}.yaml")
        files[-1].write_text(OmegaConf.to_yaml(OmegaConf.create(config(sweep, grid))), encoding="utf-8")
    return files


def config(sweep: Sweep, grid: Overrides) -> dict[str, Any]:
    """The W&B sweep of one product of settings: what is swept are its parameters, all else is in its command."""
    fixed, parameters = list[str](), dict[str, Any]()
    for override in OverridesParser.create().parse_overrides(list(grid)):
        if override.is_sweep_override():
            parameters[override.get_key_element()] = {"values": list(override.sweep_string_iterator())}
        else:
            fixed.append(str(override.input_line))
    return {
        "name": f"{sweep.name} ({sweep.size})",
        "description": sweep.title,
        "program": "lorachains.train",
        "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": parameters,
        "command": [
            "${env}",
            "${interpreter}",
            "-m",
            "${program}",
            "logger=wandb",
            "resume=true",
            *fixed,
            "${args_no_hyphens}",
        ],
    }
