"""Base language models: from the hub, a folder, a GGUF file, or random weights; and encoders."""

from lorachains.models.encoder import load_encoder
from lorachains.models.identity import fingerprint, fingerprint_of
from lorachains.models.language_model import LanguageModel, base_fingerprint
from lorachains.models.loading import load, safetensors_folder
from lorachains.models.pruning import prune
from lorachains.models.random_weights import byte_tokenizer, random_llm, tiny, tiny_encoder
from lorachains.models.wheels import WheelFolder, Wheels

__all__ = [
    "LanguageModel", "WheelFolder", "Wheels", "base_fingerprint", "byte_tokenizer", "fingerprint", "fingerprint_of",
    "load", "load_encoder", "prune", "random_llm", "safetensors_folder", "tiny", "tiny_encoder",
]  # fmt: skip
