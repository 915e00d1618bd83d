"""A random encoder, small enough to be trained in a test."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from lorachains.models import byte_tokenizer
from tests.tiny import VOCAB_SIZE


def save_encoder(folder: Path, positions: int = 128) -> Path:
    """A BERT of two layers without dropout that reads bytes, as `save_pretrained` writes it."""
    config = BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=positions, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
