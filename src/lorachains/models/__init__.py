"""Base language models: from the hub, a folder, a GGUF file, or random weights."""

from lorachains.models.identity import fingerprint, fingerprint_of
from lorachains.models.language_model import LanguageModel
from lorachains.models.loading import load, safetensors_folder
from lorachains.models.random_weights import byte_tokenizer, random_llm, tiny
from lorachains.models.wheels import Wheels

__all__ = [
    "LanguageModel", "Wheels", "byte_tokenizer", "fingerprint", "fingerprint_of", "load", "random_llm",
    "safetensors_folder", "tiny",
]  # fmt: skip
