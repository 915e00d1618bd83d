"""A run's folder as something that answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lorachains.answering.engine import Answerer
from lorachains.answering.folder import FILE, check_invoked, check_settings, read_chain
from lorachains.chain import Chain
from lorachains.data.activation import invocation
from lorachains.data.selector import SELECTOR
from lorachains.errors import LorachainsError
from lorachains.inject import scaling
from lorachains.models import LanguageModel, fingerprint
from lorachains.peft_format import check_base, read_config
from lorachains.run_folder import RunFolder
from lorachains.transfer import load_adapter


def load(folder: str | Path, *, base: LanguageModel | None = None, resident: bool = False, **changes: Any) -> Answerer:
    """A chain of LoRAs, or a run of one adapter (or of none), ready to select and to answer.

    Args:
        folder: a run's.
        base: the model that the run was trained on; by default as the run's `config.yaml` names it. It is changed, in
            place.
        resident: whether one adapter at a time is in memory.
        changes: of the chain's `selection`, `threshold` or `fallback`; `None` changes nothing.

    Raises:
        LorachainsError: the folder holds no such run, or what it holds doesn't fit.
    """
    run, path = RunFolder(Path(folder)), Path(folder)
    config: Any = OmegaConf.load(run.config) if run.config.is_file() else OmegaConf.create()
    if base is None and "model" not in config:
        raise LorachainsError(f"{run.path} holds no run: config.yaml is missing")
    base = base or instantiate(_own_model(run, config))
    assert base is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = {key: value for key, value in changes.items() if value is not None}
    if not (path / FILE).is_file():
        if chosen or resident:
            raise LorachainsError(f"{path} holds no chain ({FILE} is missing), so nothing to select or to swap")
        folders = {"adapter": run.adapter} if run.adapter.is_dir() else {}
        chain = _bank(base, folders, False) if folders else None
        base.model.eval().to(device)
        return Answerer(base, chain, folders, None, config.data.max_length)
    settings = replace(read_chain(path), **chosen)
    check_settings(settings.selection, settings.threshold, settings.fallback, settings.tasks, "")
    folders = {name: run.adapters / name for name in [SELECTOR, *settings.tasks]}
    for name, folder in folders.items():
        tokens = invocation(base.tokenizer, settings.activated, settings.template, settings.question, name)
        check_invoked(folder, tokens, f"{FILE}'s activated={settings.activated}")
    chain = _bank(base, folders, resident)
    base.model.eval().to(device)
    return Answerer(base, chain, folders, settings, settings.max_length, settings.stop, resident)


def _own_model(run: RunFolder, config: Any) -> Any:
    """The base, or what full fine-tuning has made of it."""
    if not run.model.is_dir():
        return config.model
    kept = {key: config.model[key] for key in ("dtype", "attn_implementation") if key in config.model}
    return {"_target_": "lorachains.models.load", "name": str(run.model.resolve()), **kept}


def _bank(base: LanguageModel, folders: dict[str, Path], resident: bool) -> Chain:
    """The adapters side by side, and one more that adds nothing: the base. If `resident`, room for one.

    Raises:
        LorachainsError: an adapter is missing, or of another base, rank or scaling than the first.
    """
    configs = [read_config(path) for path in folders.values()]
    known = fingerprint(base.model)
    for path, config in zip(folders.values(), configs, strict=True):
        check_base(path, base.name, known)
        config.init_lora_weights = True  # the weights are loaded
        config.alora_invocation_tokens = None  # and routes activate them
        if resident and scaling(config, config.r) != scaling(configs[0], configs[0].r):
            raise LorachainsError(f"{path} has another scaling than the selector: resident=true swaps weights alone")
    if resident:
        return Chain(base.model, configs[0])
    several = len(folders) > 1
    chain = Chain(base.model, [*configs, configs[0]] if several else configs, range(len(configs) + several))
    for expert, path in enumerate(folders.values()):
        load_adapter(chain, path, expert, activated=True)
    return chain
