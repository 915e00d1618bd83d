"""`python -m lorachains.theory problem=completion`: COLA's theory (§4) in numbers. See docs/theory.md."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.theory.figure import draw
from lorachains.theory.study import chain_rows, check_settings, frank_wolfe_rows

log = logging.getLogger(__name__)


def study(cfg: DictConfig) -> dict[str, Any]:
    """Algorithm 2 and Algorithm 1 on the config's problem."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    check_settings(settings)
    make = instantiate(cfg.problem)
    log.info("Algorithm 2")
    walks = frank_wolfe_rows(make, settings["seeds"], **settings["frank_wolfe"])
    log.info("Algorithm 1")
    chains = chain_rows(make, settings["seeds"], **settings["chains"])
    return {"problem": settings["problem"], "frank_wolfe": walks, "chains": chains}


def row_a_line(results: dict[str, Any]) -> str:
    """The results as JSON that a person can read and compare."""
    texts = {key: json.dumps(value) for key, value in results.items() if not isinstance(value, list)}
    rows = {key: value for key, value in results.items() if isinstance(value, list)}
    texts |= {key: "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" for key, value in rows.items()}
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "\n}\n"


def without_curves(row: dict[str, Any]) -> dict[str, Any]:
    """The row's single values."""
    return {key: value for key, value in row.items() if not isinstance(value, list)}


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="theory")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """Prints the results as JSON; with `output`, keeps them there with their curves, beside the figure."""
    hydra_config = HydraConfig.get()
    if cfg.output:
        Path(cfg.output).mkdir(parents=True, exist_ok=True)  # what can't be written is known before it is computed
    results = {
        "command": " ".join(["python -m lorachains.theory", *hydra_config.overrides.task]),
        "machine": f"{os.cpu_count()} CPU cores, torch {torch.__version__}",
    } | study(cfg)
    if cfg.output:
        name = Path(cfg.output) / hydra_config.runtime.choices["problem"]
        name.with_suffix(".json").write_text(row_a_line(results), encoding="utf-8")
        draw(results, name.with_suffix(".svg"))
    walks, chains = results["frank_wolfe"], [without_curves(row) for row in results["chains"]]
    sys.stdout.write(row_a_line({"frank_wolfe": walks, "chains": chains}))


if __name__ == "__main__":
    main()
