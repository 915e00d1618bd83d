"""A random encoder, small enough to be trained in a test."""

from pathlib import Path

from transformers import PreTrainedModel

from lorachains.models import tiny_encoder


def save_encoder(folder: Path, positions: int = 128) -> Path:
    """`tiny_encoder` without a head, as `save_pretrained` writes it."""
    encoder = tiny_encoder(["a", "b"], positions=positions)
    body = encoder.model.base_model
    assert isinstance(body, PreTrainedModel)
    body.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder
