"""The settings of a finished run, taken up again with changes from the command line."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder

SECTIONS = ("model", "data")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Sets apart what changes a setting of the run's own model or data, as `data.task=cb` beside `run=DIR`.

    Hydra would check it against the defaults. A section that is chosen anew (`data=superglue`) stays Hydra's.

    Returns:
        The arguments for Hydra, and the changes.
    """
    keys = [argument.lstrip("+").partition("=")[0] for argument in arguments]
    own = [f"{section}." for section in SECTIONS if "run" in keys and section not in keys]
    changes = [a for a, key in zip(arguments, keys, strict=True) if key.startswith(tuple(own))]
    return [argument for argument in arguments if argument not in changes], changes


def take_from_run(cfg: DictConfig, run: RunFolder, changes: list[str]) -> None:
    """Puts the run's model, data, adapter and demonstrations into `cfg`, with the changes; a section chosen anew stays.

    The model is the base, or what full fine-tuning has made of it.

    Of model and data, what `cfg` has no place for is left out.

    Raises:
        LorachainsError: the folder holds no finished run, or one that selects tasks, or a change is of a setting that
            the run doesn't have.
    """
    metrics = run.read_metrics()
    before = run.read_config()
    if "task_prompt" in before.method:
        raise LorachainsError(
            f"{run.path} selects tasks: its figures are in metrics.json, and lorachains.generate makes use of it"
        )
    OmegaConf.set_struct(before, True)
    for override in OverridesParser.create().parse_overrides(changes):
        try:
            OmegaConf.update(before, override.key_or_group, override.value())
        except OmegaConfBaseException as error:
            raise LorachainsError(
                f"{override.input_line} changes what {run.config} does not have: check the name"
            ) from error
    chosen = {argument.partition("=")[0] for argument in HydraConfig.get().overrides.task}
    for section in set(SECTIONS) & set(cfg) - chosen:
        cfg[section] = before[section]
    if "model/trainable_parameters" in metrics and "model" not in chosen:
        cfg.model = _own_model(run.model, before.model)
    if "adapter" in before.method:
        cfg.adapter = cfg.adapter or str(run.adapter)
    if "demonstrations" in before.method and "demonstrations" not in chosen:
        cfg.demonstrations, cfg.seed = before.method.demonstrations, before.seed


def _own_model(folder: Path, base: DictConfig) -> dict[str, Any]:
    """The `model` section of what full fine-tuning has saved, loaded as its base was."""
    kept = {key: base[key] for key in ("dtype", "attn_implementation") if key in base}
    return {"_target_": "lorachains.models.load", "name": str(folder.resolve()), **kept}
