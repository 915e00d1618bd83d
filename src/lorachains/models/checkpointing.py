"""Activation checkpointing (Chen et al. 2016): a decoder layer keeps its input alone, and runs again in the backward
pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lorachains.errors import LorachainsError


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Makes each decoder layer keep its input alone while it is trained.

    A layer runs again with the attention that it ran with, `config._attn_implementation`, whatever it is by then.

    Raises:
        LorachainsError: transformers can't do it with this architecture.
    """
    if not model.supports_gradient_checkpointing:
        raise LorachainsError(
            f"model.checkpointing is true, but transformers can't recompute a {type(model).__name__}: set it to false"
        )
    config = model.config

    def run(layer: Callable[..., Any], *args: Any) -> Any:
        implementation = config._attn_implementation

        def as_before(*args: Any) -> Any:
            if torch.compiler.is_compiling():  # traced once, for both passes; and what is traced may change no setting
                return layer(*args)
            now, config._attn_implementation = config._attn_implementation, implementation
            try:
                return layer(*args)
            finally:
                config._attn_implementation = now

        return checkpoint(as_before, *args, use_reentrant=False)

    # Not the public `gradient_checkpointing_enable`: it takes options for torch's function, not another function.
    model._set_gradient_checkpointing(gradient_checkpointing_func=run)
