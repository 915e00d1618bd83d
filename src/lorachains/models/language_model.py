"""What every way to get a base model returns."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorachains.errors import LorachainsError
from lorachains.models.checkpointing import checkpoint_layers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer. `name` is what the user gave: a hub name, a folder or a GGUF file."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def ready_to_train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, checkpointing: bool = False
) -> LanguageModel:
    """Settles what pretrained models leave open: the padding token, and a key/value cache for generation only.

    Args:
        checkpointing: whether activations are recomputed in the backward pass: see `checkpoint_layers`.
    """
    if checkpointing:
        checkpoint_layers(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.use_cache = False  # with it, torch.compile recompiles at each layer
    if model.generation_config is not None:
        model.generation_config.use_cache = True
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LanguageModel(model, tokenizer, name)


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype that `model.dtype` names. Raises `LorachainsError` for any other word."""
    if dtype not in _DTYPES:
        raise LorachainsError(f"model.dtype is {dtype!r}: give one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
