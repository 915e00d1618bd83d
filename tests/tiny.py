"""Random models of five architectures, small enough to be built in every test, and a tokenizer that fits them."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lorachains.models import byte_tokenizer

VOCAB_SIZE = len(byte_tokenizer())
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_FIELDS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "dropout": 0.0,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}
ARCHITECTURES = tuple(_FIELDS)


def tiny_model(arch: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A model of two layers, hidden size 32 and four heads, without dropout, reading `byte_tokenizer`'s tokens.

    Args:
        fields: of its config, beside or in place of those here; architectures not named here are much like Llama.
    """
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    own = _FIELDS.get(arch, _LLAMA_LIKE) | fields
    config = AutoConfig.for_model(arch, vocab_size=VOCAB_SIZE, use_cache=False, **own, **special)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
