"""Base language models: from the hub, a folder, a GGUF file, or random weights."""

from lorachains.models.identity import fingerprint
from lorachains.models.language_model import LanguageModel
from lorachains.models.loading import load
from lorachains.models.random_weights import byte_tokenizer, random_llm, tiny
from lorachains.models.wheels import Wheels

__all__ = ["LanguageModel", "Wheels", "byte_tokenizer", "fingerprint", "load", "random_llm", "tiny"]
