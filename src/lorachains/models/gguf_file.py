"""GGUF files as ordinary transformers models.

Dequantising takes seconds per 100M parameters, so the result is kept as a folder of safetensors in the cache.
"""

import hashlib
import json
import logging
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.reader import read_gguf_metadata

from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)

_FORMAT = 2  # raise when the same GGUF would be converted differently
_MANIFEST = "manifest.json"
# llama.cpp's names of the pre-tokenizers that cut every digit off first; transformers leaves that step out.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def converted(gguf: Path, *, dtype: torch.dtype, cache: Path) -> Path:
    """The folder under `cache` that holds `gguf` as safetensors of `dtype` with its tokenizer; made on the first call.

    An entry belongs to the file's path, size and modification time and to the transformers version; one with missing or
    cut files is made anew. Raises `LorachainsError` where the file can't be read as GGUF.
    """
    entry = cache / "gguf" / _key(gguf, dtype)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{entry}.lock"):
        if not _complete(entry):
            _build(gguf, dtype, entry)
    return entry


def _key(gguf: Path, dtype: torch.dtype) -> str:
    stat = gguf.stat()
    parts = (gguf.resolve(), stat.st_size, stat.st_mtime_ns, dtype, transformers.__version__, _FORMAT)
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _sizes(entry: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(entry.iterdir()) if file.name != _MANIFEST}


def _complete(entry: Path) -> bool:
    if not entry.is_dir():
        return False
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
    except (OSError, ValueError):
        manifest = None
    if manifest == _sizes(entry):
        return True
    log.warning("the cached model in %s is damaged: making it anew", entry)
    return False


def _build(gguf: Path, dtype: torch.dtype, entry: Path) -> None:
    """Writes the entry beside its place first, so that an interrupted run leaves no half of one."""
    log.info("dequantising %s to %s (once; kept in %s)", gguf, str(dtype).removeprefix("torch."), entry)
    with tempfile.TemporaryDirectory(dir=entry.parent) as scratch:
        folder = Path(scratch) / "model"
        model, tokenizer = _read(gguf, dtype)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / _MANIFEST).write_text(json.dumps(_sizes(folder)))
        shutil.rmtree(entry, ignore_errors=True)
        folder.rename(entry)


def _read(gguf: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        metadata, _ = read_gguf_metadata(str(gguf))
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (ValueError, OSError, KeyError, IndexError, struct.error) as error:
        raise LorachainsError(
            f"{gguf}: can't be read as a GGUF model ({_first_line(error)}): fetch the file again"
        ) from error
    _complete_tokenizer(tokenizer, metadata)
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def _complete_tokenizer(tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any]) -> None:
    """Sets what the file says of the tokenizer and transformers does not take over, in some or in all versions."""
    for token, key in _SPECIAL_TOKENS.items():
        if (index := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(index))
    tokenizer.clean_up_tokenization_spaces = False
    if metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
