"""`python -m lorachains.ledger action=… run=DIR`: looks into the chain that a run has learned, and makes others of it.

`show` tells its links, `rewind` goes back to a knot, `compress` finds the best adapter of a smaller rank, and `merge`
writes the full model. See `conf/ledger.yaml`.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from lorachains.cli import one_line_errors, quick_imports
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder

with quick_imports():
    from lorachains.exported import ExportedChain
    from lorachains.full_model import merge_in_memory
    from lorachains.models import fingerprint, safetensors_folder
    from lorachains.models.language_model import torch_dtype
    from lorachains.of_run import split_arguments, take_from_run
    from lorachains.peft_format import check_base, read_adapter, write_adapter
    from lorachains.shards import Shards

log = logging.getLogger(__name__)

Report = dict[str, Any]
"""What is printed, as JSON."""


def show(cfg: DictConfig, chain: ExportedChain) -> Report:
    """The links: rank, knot (optimizer steps done when it was tied; null: it wasn't, or nobody knows), `‖ΔW‖`."""
    links = [
        {"link": number, "rank": link.rank, "knot": link.knot, "norm": norm}
        for number, (link, norm) in enumerate(zip(chain.links, chain.norms(), strict=True), 1)
    ]
    base = {"base": chain.config.base_model_name_or_path, "base_fingerprint": chain.fingerprint}
    return base | {"rank": chain.rank, "norm": chain.norm, "layers": len(chain.layers), "links": links}


def rewind(cfg: DictConfig, chain: ExportedChain) -> Report:
    """The chain's first `links` links as an adapter."""
    earlier, output = chain.first(cfg.links), _output(cfg)
    write_adapter(earlier, output)
    return show(cfg, earlier) | {"output": str(output)}


def compress(cfg: DictConfig, chain: ExportedChain) -> Report:
    """The nearest adapter of rank `rank`, and how far it is from the chain: `‖ΔW − ΔW′‖ / ‖ΔW‖`."""
    (adapter, errors), output = chain.compressed(cfg.rank), _output(cfg)
    write_adapter(adapter, output)
    return {"rank": cfg.rank, "from_rank": chain.rank, "error": errors.pop(""), "layers": errors, "output": str(output)}


def merge(cfg: DictConfig, chain: ExportedChain) -> Report:
    """The base with the chain in its weights; `lost` is the share of `ΔW` that their precision lost."""
    output, dtype = _output(cfg), str(torch_dtype(cfg.model.dtype)).removeprefix("torch.")
    shards = _shards(cfg.model)
    why = "its weights lie in no folder of safetensors" if shards is None else shards.why_not(chain)
    if shards is not None and why is None:
        check_base(Path(cfg.adapter), cfg.model.name, shards.fingerprint())
        return {"lost": shards.merge(chain, output), "dtype": dtype, "output": str(output)}
    log.info("the whole model is taken into memory: %s", why)
    half = dtype == "float16"  # in which small weights are others: no fingerprint of it is the base's
    base = instantiate(cfg.model, **({"dtype": "float32"} if half else {}))
    check_base(Path(cfg.adapter), base.name, fingerprint(base.model))
    if half:
        base.model.half()
    return {"lost": merge_in_memory(chain, base, output), "dtype": dtype, "output": str(output)}


ACTIONS = {action.__name__: action for action in (show, rewind, compress, merge)}


def ledger(cfg: DictConfig) -> None:
    """Does what `action` says and prints its report as JSON."""
    if cfg.action not in ACTIONS:
        raise LorachainsError(f"action is {cfg.action!r}: choose {', '.join(ACTIONS)}")
    if cfg.adapter is None:
        why = f"run={cfg.run} has no adapter: its method trains none" if cfg.run else "no chain is given"
        raise LorachainsError(f"{why}: set run=DIR, of method=lora or cola, or adapter=DIR")
    print(json.dumps(ACTIONS[cfg.action](cfg, read_adapter(Path(cfg.adapter))), indent=2))


def _output(cfg: DictConfig) -> Path:
    if cfg.output is None:
        raise LorachainsError(f"action={cfg.action} writes a folder: set output=DIR")
    if (output := Path(cfg.output)).exists() and (not output.is_dir() or any(output.iterdir())):
        raise LorachainsError(f"output is {output}, which holds something already: choose another folder")
    return output


def _shards(model: DictConfig) -> Shards | None:
    loaded_as_it_is = "name" in model and not model.get("quantization") and not model.get("random_weights")
    folder = safetensors_folder(model.name) if loaded_as_it_is else None
    return None if folder is None else Shards(folder, torch_dtype(model.dtype))


def main() -> None:
    """The command line. With `run=DIR`, what is said of `model.` changes the run's own settings."""
    sys.argv[1:], changes = split_arguments(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="ledger")
    @one_line_errors
    def command(cfg: DictConfig) -> None:
        if cfg.run:
            several = sorted(folder.name for folder in RunFolder(Path(cfg.run)).adapters.glob("*/"))
            if several and cfg.adapter is None:
                raise LorachainsError(
                    f"run={cfg.run} has several adapters: give with it adapter={cfg.run}/adapters/NAME, of "
                    f"{', '.join(several)}"
                )
            take_from_run(cfg, RunFolder(Path(cfg.run)), changes)
        ledger(cfg)

    command()


if __name__ == "__main__":
    main()
