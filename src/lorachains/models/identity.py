"""A short name for a set of base weights, so that an adapter can tell whether it sits on the base it was trained on."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

_VALUES_PER_PARAMETER = 64


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that identify the base weights of `model`.

    Made of the parameters' names and shapes and an evenly spaced sample of their values, rounded to bfloat16: the same
    weights held in float32 and in bfloat16 agree. Adapters don't count: parameters with `lora_` in their name are left
    out, and a wrapped layer's `base_layer` stands under the layer's own name.
    """
    return fingerprint_of(_base_parameters(model))


def fingerprint_of(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """`fingerprint` of a model whose parameters are these, by name, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sample(parameter).numpy().tobytes())
    return digest.hexdigest()[:16]


def _base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = [(name.replace(".base_layer", ""), p) for name, p in model.named_parameters() if "lora_" not in name]
    return sorted(named, key=lambda item: item[0])


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    """At most `_VALUES_PER_PARAMETER` values as bfloat16 bits, (values,) int16 on the CPU."""
    flat = parameter.detach().flatten()
    stride = -(-flat.numel() // _VALUES_PER_PARAMETER) or 1
    return flat[::stride].to(torch.bfloat16).view(torch.int16).cpu()
