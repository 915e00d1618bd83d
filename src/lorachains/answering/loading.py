"""A run's folder as something that answers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lorachains.answering.engine import Answerer
from lorachains.answering.folder import (
    FILE,
    SELECTOR_FILE,
    ChainFile,
    check_invoked,
    check_settings,
    read_chain,
    read_selector,
)
from lorachains.answering.mixtures import MixtureAnswerer
from lorachains.answering.prompts import ChainPrompts, Prompts, prompts_of
from lorachains.answering.selectors import Classifier, Selector
from lorachains.chain import Chain
from lorachains.data import templates
from lorachains.data.activation import invocation
from lorachains.data.selector import INSTRUCTION
from lorachains.data.tasks import SELECTOR
from lorachains.errors import LorachainsError
from lorachains.inject import scaling
from lorachains.mixture_format import ABOUT, read_routers
from lorachains.models import LanguageModel, fingerprint
from lorachains.peft_format import CONFIG, check_base, read_config, refuse_activated
from lorachains.run_folder import RunFolder
from lorachains.transfer import load_adapter


def load(
    folder: str | Path, *, base: LanguageModel | None = None, resident: bool = False, expert: str | None = None,
    decision: str | None = None, mixture: str | Path | None = None, selector: str | Path | None = None, **changes: Any,
) -> Answerer:  # fmt: skip
    """A chain of LoRAs, a mixture, or a run of adapters (or of none), ready to answer.

    Args:
        folder: a run's.
        base: the model that the run was trained on; by default as the run's `config.yaml` names it. It is changed, in
            place.
        resident: whether one adapter of a chain at a time is in memory.
        expert: the name of one of several adapters, which then answers everything.
        decision: of a mixture, in place of its own, see `decisions`.
        mixture: a mixture's folder in place of the run's own `adapters/`.
        selector: the run folder of a selector that was trained by itself (a LoRA, a whole model or a classifier), and
            that selects in place of the chain's own.
        changes: of the chain's `selection`, `threshold` or `fallback`; `None` changes nothing.

    Raises:
        LorachainsError: the folder holds no such run, or what it holds doesn't fit.
    """
    run, path = RunFolder(Path(folder)), Path(folder)
    adapters = Path(mixture) if mixture is not None else run.adapters
    chain, routed = (path / FILE).is_file(), (adapters / ABOUT).is_file() or mixture is not None
    if unknown := changes.keys() - {"selection", "threshold", "fallback"}:
        raise LorachainsError(f"load has no {', '.join(sorted(unknown))}: what it takes is in its docstring")
    chosen = {key: value for key, value in changes.items() if value is not None}
    if (path / SELECTOR_FILE).is_file():
        raise LorachainsError(f"{path} holds a selector and none that answers: give it as selector, beside a chain")
    asked = chosen | {"resident": resident or None, "selector": selector, "decision": decision}
    if expert is not None and (vain := [key for key, value in asked.items() if value is not None]):
        raise LorachainsError(
            f"expert={expert} answers everything, so that {', '.join(vain)} decides nothing: leave it out"
        )
    if (chosen or resident or selector is not None) and not chain:
        raise LorachainsError(f"{path} holds no chain ({FILE} is missing), so nothing to select or to swap")
    if decision is not None and not routed:
        raise LorachainsError(f"decision={decision} is of a mixture's routers, of which {path} has none: leave it out")
    config: Any = run.read_config() if run.config.is_file() else OmegaConf.create()
    if base is None and "model" not in config:
        raise LorachainsError(f"{run.path} holds no run: config.yaml is missing")
    base = base or instantiate(_own_model(run, config))
    assert base is not None
    base.model.eval().to(_device())
    if expert is not None or not (chain or routed):
        return _of_one(base, run, adapters, config, expert)
    return MixtureAnswerer(base, adapters, decision) if routed else _chain(base, run, resident, selector, chosen)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _chain(
    base: LanguageModel, run: RunFolder, resident: bool, selector: str | Path | None, chosen: dict[str, Any]
) -> Answerer:
    settings = replace(read_chain(run.path), **chosen)
    check_settings(settings.selection, settings.threshold, settings.fallback, settings.tasks, "")
    folders, other = {name: run.adapters / name for name in [SELECTOR, *settings.tasks]}, None
    if selector is not None:
        settings, folders, other = _with_selector(RunFolder(Path(selector)), settings, folders)
    _check_invoked(base, folders, settings)
    chain = _bank(base, folders, resident)
    prompts = prompts_of(base.tokenizer, settings)
    return Answerer(base, chain, folders, prompts, settings, settings.stop, resident, other)


def _with_selector(
    run: RunFolder, settings: ChainFile, folders: dict[str, Path]
) -> tuple[ChainFile, dict[str, Path], Selector | None]:
    """The chain's settings and adapters with a selector that was trained by itself.

    A LoRA takes the place of the chain's own in the bank; a whole model or a classifier is a second model beside it.

    Raises:
        LorachainsError: the folder holds no selector, or it knows other tasks than the chain, or it is a LoRA that has
            seen texts in another form.
    """
    own = read_selector(run.path)
    if set(own.names) != set(settings.tasks):
        raise LorachainsError(
            f"{run.path} selects among {', '.join(own.names)}, but the chain's tasks are {', '.join(settings.tasks)}: "
            "give a selector that was trained on the same data.tasks"
        )
    beside = replace(settings, activated="none", **vars(own))
    if run.classifier.is_dir():
        return settings, folders, Classifier(run.classifier, beside, _device())
    if run.model.is_dir():
        base = instantiate(_own_model(run, run.read_config()))
        base.model.eval().to(_device())
        return settings, folders, Answerer(base, None, {}, prompts_of(base.tokenizer, beside), beside)
    if (own.template, own.max_length) != (settings.template, settings.max_length):
        raise LorachainsError(
            f"{run.path} was trained with another data.template or data.max_length than the chain, beside whose "
            "experts its LoRA is to be: train it with the chain's"
        )
    return replace(settings, names=own.names, task_prompt=own.task_prompt), folders | {SELECTOR: run.adapter}, None


def _check_invoked(base: LanguageModel, folders: Mapping[str, Path], settings: ChainFile) -> None:
    for name, folder in folders.items():
        tokens = invocation(base.tokenizer, settings.activated, settings.template, settings.question, name)
        check_invoked(folder, tokens, f"{FILE}'s activated={settings.activated}")


def _of_one(base: LanguageModel, run: RunFolder, adapters: Path, config: Any, expert: str | None) -> Answerer:
    """Of the one adapter of a run, of one of several, or of none.

    Raises:
        LorachainsError: which one isn't said, or there is none of that name.
    """
    there = sorted(file.parent.name for file in adapters.glob(f"*/{CONFIG}"))
    if expert is not None and not there:
        raise LorachainsError(
            f"{run.path} has no adapters with names, of which expert={expert} could be one: leave it out"
        )
    if there and expert not in there:
        said = "has no router to choose among its adapters" if expert is None else f"has no adapter {expert!r}"
        raise LorachainsError(f"{run.path} {said}: choose one with expert= of {', '.join(there)}")
    folders = {expert: adapters / expert} if expert is not None else {}
    if not there and run.adapter.is_dir():
        folders = {"adapter": run.adapter}
    prompts, stop = _manners(base, run, adapters, config)
    if isinstance(prompts, ChainPrompts):
        _check_invoked(base, folders, prompts.settings)
    else:
        for folder in folders.values():
            refuse_activated(folder, read_config(folder))
    chain = _bank(base, folders, False) if folders else None
    return Answerer(base, chain, folders, prompts, stop=stop)


def _manners(base: LanguageModel, run: RunFolder, adapters: Path, config: Any) -> tuple[Prompts, str | None]:
    """How requests were put to a run's adapters, and what ends an answer."""
    if (run.path / FILE).is_file():
        settings = read_chain(run.path)
        return prompts_of(base.tokenizer, settings), settings.stop
    if (adapters / ABOUT).is_file():
        about = read_routers(adapters)[0]
        return Prompts(base.tokenizer, about.template, about.max_length), about.stop
    named = config.data.get("template")  # of instruction sets
    template = templates.template(named, base.tokenizer)(INSTRUCTION) if named else INSTRUCTION
    return Prompts(base.tokenizer, template, config.data.max_length), None


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
