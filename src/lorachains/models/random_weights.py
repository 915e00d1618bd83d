"""Language models with random weights: for tests, and for speed measurements where the real weights can't be had."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lorachains.errors import LorachainsError
from lorachains.models.language_model import LanguageModel, ready_to_train, torch_dtype

_SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte: any text round-trips, and nothing has to be downloaded. 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*_SPECIAL_TOKENS, *alphabet))}
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos = _SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)


def random_llm(
    name: str,
    *,
    architecture: Mapping[str, Any] | None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    checkpointing: bool = False,
    prune_vocab: bool = False,
    seed: int = 0,
) -> LanguageModel:
    """A model of `architecture` (the fields of its transformers config, with `model_type`), reading bytes as tokens.

    The weights depend on `seed` alone; the global random state is left as it was. Raises `LorachainsError` without an
    architecture or with one that transformers doesn't know.
    """
    if not architecture or architecture.get("model_type") not in CONFIG_MAPPING:
        raise LorachainsError(
            f"model.architecture is {dict(architecture or {})}: random weights for {name} need the fields of its "
            "transformers config, with model_type, as in conf/model/opt-1.3b.yaml"
        )
    tokenizer = byte_tokenizer()
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(**{**architecture, **special})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch_dtype(dtype), attn_implementation=attn_implementation
        )
    return ready_to_train(model, tokenizer, name, checkpointing=checkpointing, prune_vocab=prune_vocab)


def tiny(
    *, seed: int = 0, hidden_size: int = 64, num_hidden_layers: int = 2, dtype: str = "float32",
    checkpointing: bool = False, prune_vocab: bool = False,
) -> LanguageModel:  # fmt: skip
    """A random Llama of about 0.1M parameters, for tests."""
    architecture = {
        "model_type": "llama",
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    return random_llm(
        "tiny", architecture=architecture, dtype=dtype, checkpointing=checkpointing, prune_vocab=prune_vocab, seed=seed
    )


def tiny_encoder(labels: Sequence[str], *, seed: int = 0, positions: int = 512) -> LanguageModel:
    """A random BERT of two layers without dropout and with a head for labels, reading bytes as tokens, for tests."""
    tokenizer = byte_tokenizer()
    tokenizer.truncation_side = "left"
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=positions, pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.2,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = BertForSequenceClassification(config)
    return LanguageModel(model, tokenizer, "tiny")
