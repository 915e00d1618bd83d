"""The settings of a finished run, taken up again with changes from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorachains.answering.folder import FILE, SELECTOR_FILE, read_chain, read_selector
from lorachains.errors import LorachainsError
from lorachains.mixture_format import ABOUT, read_routers
from lorachains.run_folder import RunFolder

SECTIONS = ("model", "data")
BEGINNINGS = ("start_from", "start_links", "start", "train", "experts")
"""Settings of methods that say what training begins with."""
TRAINING = (
    "optim", "stage1_epochs", "eta", "eta_schedule", "route", "unlabelled", "router_lr", "router_batch_size",
    "selector_lr", "selector_batch_size", "decoys",
)  # fmt: skip
"""Settings of methods that say how they train."""


def split_arguments(arguments: list[str], sections: Sequence[str] = SECTIONS) -> tuple[list[str], list[str]]:
    """Sets apart what changes a setting of the run's own model or data, as `data.task=cb` beside `run=DIR`.

    Hydra would check it against the defaults. A section that is chosen anew (`data=superglue`) stays Hydra's.

    Args:
        sections: of the run's settings that can be changed.

    Returns:
        The arguments for Hydra, and the changes.
    """
    keys = [argument.lstrip("+").partition("=")[0] for argument in arguments]
    own = [f"{section}." for section in sections if "run" in keys and section not in keys]
    changes = [a for a, key in zip(arguments, keys, strict=True) if key.startswith(tuple(own))]
    return [argument for argument in arguments if argument not in changes], changes


def take_from_run(cfg: DictConfig, run: RunFolder, changes: list[str]) -> None:
    """Puts the run's model, data, adapter and demonstrations into `cfg`, with the changes; a section chosen anew stays.

    The model is the base, or what full fine-tuning has made of it. Where more than one adapter answers, or tasks are
    selected, the run's method comes along, to be loaded and not to be trained (`_loadable`).

    Of model, data and method, what `cfg` has no place for is left out.

    Raises:
        LorachainsError: the folder holds no finished run, or one that selects tasks and there is no place for a method,
            or a change is of a setting that the run doesn't have.
    """
    run.read_metrics()
    before = run.read_config()
    selects, several = "task_prompt" in before.method, "adapter" in before.method and run.adapters.is_dir()
    if selects and "method" not in cfg:
        raise LorachainsError(
            f"{run.path} selects tasks: its figures are in metrics.json, and lorachains.generate makes use of it"
        )
    loadable = "method" in cfg and cfg.adapter is None and (selects or several)
    _check_changes(changes, cfg.adapter or run.path, loadable)
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
    if run.model.is_dir() and "model" not in chosen:
        cfg.model = _own_model(run.model, before.model)
    if loadable:
        cfg.method = _loadable(before.method, run, cfg.mixture, changes)
    elif "adapter" in before.method:
        cfg.adapter = cfg.adapter or str(run.adapter)
    if "demonstrations" in before.method and "demonstrations" in cfg and "demonstrations" not in chosen:
        cfg.demonstrations, cfg.seed = before.method.demonstrations, before.seed


def _check_changes(changes: list[str], scored: Path | str, loadable: bool) -> None:
    """Raises `LorachainsError` for a change of the method that would change nothing."""
    of_method = [change for change in changes if change.lstrip("+").startswith("method.")]
    if of_method and not loadable:
        raise LorachainsError(f"{of_method[0]} changes nothing: {scored} has one adapter, or none; leave it out")
    for change in of_method:
        if change.lstrip("+").partition("=")[0].split(".")[1] in BEGINNINGS + TRAINING:
            raise LorachainsError(f"{change} is of training, which is over: leave it out")


def _loadable(method: DictConfig, run: RunFolder, mixture: str | None, changes: Sequence[str]) -> dict[str, Any]:
    """The `method` section from which a run's method is built without what its training began with.

    Its names are those of what is in the run's folder, or in a mixture's, whatever the data's tasks are now; how a
    mixture routes is as its `mixture.json` says, but for the changes.

    Raises:
        LorachainsError: a change is of what routers were trained with.
    """
    settings: dict[str, Any] = OmegaConf.to_container(method, resolve=True)  # type: ignore[assignment]
    settings |= {key: None for key in BEGINNINGS if key in settings}
    if isinstance(rates := settings["optim"]["lr"], list):
        settings["optim"]["lr"] = rates[0]  # one for each adapter; there may be others now
    if run.classifier.is_dir():
        settings["encoder"] = str(run.classifier.resolve())
    if mixture is not None or (run.adapters / ABOUT).is_file():
        settings |= _routing(settings, Path(mixture or run.adapters), changes)
    elif (run.path / FILE).is_file():
        settings["names"] = read_chain(run.path).tasks
    elif (run.path / SELECTOR_FILE).is_file():
        settings["names"] = read_selector(run.path).tasks
    return settings


def _routing(method: dict[str, Any], folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The settings of a mixture, with the changes in `method`."""
    about, found = read_routers(folder)[0], {}
    changed = {change.lstrip("+").partition("=")[0].removeprefix("method.") for change in changes}
    if not about.by_token:
        found = {"pool": about.pool, "reads": about.reads, "share_router": about.shared}
        for key in found.keys() & changed:
            if method[key] != found[key]:
                raise LorachainsError(
                    f"method.{key} is {method[key]!r}, but the routers in {folder} were trained with {found[key]!r}: "
                    "leave it out"
                )
        free = {"decision": about.decision, "top_k": about.top_k, "voters": about.voters}
        found |= {key: value for key, value in free.items() if key not in changed}
    return found | {"names": about.names}


def _own_model(folder: Path, base: DictConfig) -> dict[str, Any]:
    """The `model` section of what full fine-tuning has saved, loaded as its base was."""
    kept = {key: base[key] for key in ("dtype", "attn_implementation") if key in base}
    return {"_target_": "lorachains.models.load", "name": str(folder.resolve()), **kept}
