"""What every way to get a base model returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorachains.errors import LorachainsError, check_switch
from lorachains.models.checkpointing import checkpoint_layers
from lorachains.models.identity import fingerprint

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Pruned:
    """What became of a pruned vocabulary.

    Attributes:
        kept: the tokens kept, by their ids before; a token's place is its id now.
        fingerprint: of the weights before.
    """

    kept: tuple[int, ...]
    fingerprint: str


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model (or an encoder, `load_encoder`) and its tokenizer.

    Attributes:
        name: what the user gave: a hub name, a folder or a GGUF file.
        prune_vocab: whether only the tokens of the data are to be kept, once these are known.
        pruned: what became of that.
        facts: numbers about it that belong into `metrics.json`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    prune_vocab: bool = False
    pruned: Pruned | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


def base_fingerprint(base: LanguageModel) -> str:
    """Of the weights that its adapters belong to: before pruning, which adapters take no notice of."""
    return base.pruned.fingerprint if base.pruned else fingerprint(base.model)


def ready_to_train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, checkpointing: bool = False,
    prune_vocab: bool = False,
) -> LanguageModel:  # fmt: skip
    """Settles what pretrained models leave open: the padding token, and a key/value cache for generation only.

    Args:
        checkpointing: whether activations are recomputed in the backward pass: see `checkpoint_layers`.
        prune_vocab: see `LanguageModel`.
    """
    check_switch("model.checkpointing", checkpointing)
    check_switch("model.prune_vocab", prune_vocab)
    if checkpointing:
        checkpoint_layers(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.use_cache = False  # with it, torch.compile recompiles at each layer
    if model.generation_config is not None:
        model.generation_config.use_cache = True
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LanguageModel(model, tokenizer, name, prune_vocab)


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype that `model.dtype` names. Raises `LorachainsError` for any other word.

    "auto" is bfloat16 on a GPU, and on a CPU with instructions for it; on others float32, since products in
    bfloat16 take many times as long there.
    """
    if dtype == "auto":
        fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in _DTYPES:
        raise LorachainsError(f"model.dtype is {dtype!r}: give one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
