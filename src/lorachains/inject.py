"""Puts a `LoraBank` over every linear layer that a `peft.LoraConfig` targets, by PEFT's own matching rules."""

import math
from dataclasses import fields

from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, _get_submodules
from torch import nn
from transformers import PreTrainedModel

from lorachains.bank import LoraBank
from lorachains.errors import LorachainsError, check_switch
from lorachains.routing import Routing

SUPPORTED = {
    "r", "lora_alpha", "lora_dropout", "lora_bias", "use_rslora", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
"""Fields of `peft.LoraConfig` that a bank follows."""
BOOKKEEPING = {
    "task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "fan_in_fan_out", "runtime_config",
}  # fmt: skip
"""Fields that say nothing about the computation (`fan_in_fan_out` follows from the layer's class)."""


def check_config(config: LoraConfig) -> None:
    """Refuses what a bank can't do, before anything is built.

    Raises:
        LorachainsError: names the field of the adapter config, its value, and what is supported.
    """
    if type(config.r) is not int or config.r < 1:
        raise LorachainsError(f"adapter.r is {config.r!r}: give a rank of at least 1")
    if not isinstance(config.lora_alpha, int | float) or not 0 < config.lora_alpha < math.inf:
        raise LorachainsError(f"adapter.lora_alpha is {config.lora_alpha!r}: give a finite number above 0")
    if not isinstance(config.lora_dropout, int | float) or not 0 <= config.lora_dropout < 1:
        raise LorachainsError(f"adapter.lora_dropout is {config.lora_dropout!r}: give a probability in [0, 1)")
    if config.init_lora_weights not in (True, "gaussian"):
        raise LorachainsError(
            f"adapter.init_lora_weights is {config.init_lora_weights!r}: "
            "a bank draws A as 'gaussian' or true (uniform), with B zero"
        )
    for key in ("use_rslora", "lora_bias"):
        check_switch(f"adapter.{key}", getattr(config, key))
    if config.task_type not in (None, "CAUSAL_LM"):
        raise LorachainsError(f"adapter.task_type is {config.task_type!s}: give CAUSAL_LM, or null")
    default = LoraConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in SUPPORTED | BOOKKEEPING and value != getattr(default, field.name):
            raise LorachainsError(
                f"adapter.{field.name} is {value!r}, which a bank does not support: leave it at its default"
            )


def scaling(config: LoraConfig, rank: int) -> float:
    """`alpha / rank`, or `alpha / √rank` with rank-stabilised LoRA."""
    return config.lora_alpha / (math.sqrt(rank) if config.use_rslora else rank)


def inject(model: PreTrainedModel, config: LoraConfig, experts: int, routing: Routing) -> dict[str, LoraBank]:
    """Freezes the model and replaces each targeted linear layer by a bank over it.

    Returns:
        The banks by the name of the layer in `model`, in the model's order. They hold no link yet.

    Raises:
        LorachainsError: the config asks for what a bank can't do, or targets nothing.
    """
    check_config(config)
    model.requires_grad_(False)
    if config.target_modules is None:
        config.target_modules = _default_targets(model)
    _maybe_include_all_linear_layers(config, model)  # in place
    targets = [name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)]
    if not targets:
        raise LorachainsError(
            f"adapter.target_modules={_shown(config.target_modules)}{_narrowed(config)} matches no layer of "
            f"{type(model).__name__}: its linear layers are named {', '.join(_linear_names(model))}"
        )
    if experts > 1 and any(model.get_submodule(name) is model.get_output_embeddings() for name in targets):
        raise LorachainsError(
            f"adapter.target_modules={_shown(config.target_modules)} takes in the output layer, which sees the answer "
            f"tokens of all rows in one and can't tell {experts} adapters apart: leave it out"
        )
    banks = {}
    for name in targets:
        parent, layer, child = _get_submodules(model, name)
        banks[name] = LoraBank(layer, experts, routing, config.lora_dropout, config.lora_bias)
        setattr(parent, child, banks[name])
    return banks


def check_names(model: PreTrainedModel, config: LoraConfig) -> None:
    """Raises a LorachainsError for a name in a list of layers that none has: PEFT passes over it without a word."""
    names = [name for name, _ in model.named_modules()]
    for key in ("target_modules", "exclude_modules"):
        given = getattr(config, key)
        for end in sorted(given) if isinstance(given, set | list) else ():
            if not any(name == end or name.endswith(f".{end}") for name in names):
                raise LorachainsError(
                    f"adapter.{key}={_shown(given)}: {end!r} matches no layer of {type(model).__name__}: its linear "
                    f"layers are named {', '.join(_linear_names(model))}"
                )


def _default_targets(model: PreTrainedModel) -> list[str]:
    kind = model.config.model_type
    if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        raise LorachainsError(
            f"adapter.target_modules is not set and PEFT has no default for {kind!r} models: "
            f"name some of {', '.join(_linear_names(model))}, or 'all-linear'"
        )
    return list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])


def _linear_names(model: nn.Module) -> list[str]:
    linear = (name for name, layer in model.named_modules() if hasattr(layer, "in_features") or hasattr(layer, "nf"))
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def _narrowed(config: LoraConfig) -> str:
    """What else decides which layers are targeted, as far as it is given."""
    keys = [
        key for key in ("exclude_modules", "layers_to_transform", "layers_pattern") if getattr(config, key) is not None
    ]
    return "".join(f" with adapter.{key}={_shown(getattr(config, key))}" for key in keys)


def _shown(targets: object) -> str:
    return repr(sorted(targets) if isinstance(targets, set) else targets)
