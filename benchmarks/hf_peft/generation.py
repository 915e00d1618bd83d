"""Generation by PEFT's mixed batches, by a merged model, and by X-LoRA."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, set_seed

from hf_peft.adapters import named, with_random_adapters, with_xlora
from hf_peft.clock import median_seconds
from hf_peft.training import Figures
from lorachains.models import LanguageModel


def generate(
    lm: LanguageModel, adapters: int, prompts: Sequence[str], max_new_tokens: int, *, device: str, seed: int = 0,
    repeats: int = 5, cache: str | None = None, save: Path | None = None,
) -> dict[str, Figures]:  # fmt: skip
    """Greedy continuations of exactly `max_new_tokens`, all prompts in one batch.

    Args:
        adapters: random LoRAs in the model's precision; prompt i gets the one of number i modulo `adapters`.
        repeats: 0 if only the tokens are wanted.
        cache: transformers' `cache_implementation`, such as "static"; None for its default.
        save: a folder into which the adapters are written, each in one by its name (`named`).

    Returns:
        "mixed", by PEFT's `adapter_names`, and "merged", all prompts by adapter 0 in the weights: for each the median
        seconds, tokens_per_second and tokens (the new ones of each prompt).
    """
    set_seed(seed)
    model = with_random_adapters(_endless(copy.deepcopy(lm.model), device), adapters).eval()
    if save is not None:
        model.save_pretrained(str(save), save_embedding_layers=False)
    prompt = _prompt(lm, prompts, max_new_tokens, device, use_cache=True, cache_implementation=cache)
    names = [named(i % adapters) for i in range(len(prompts))]
    mixed = _figures(lm, lambda: model.generate(**prompt, adapter_names=names), max_new_tokens, device, repeats)
    merged = model.merge_and_unload(adapter_names=[named(0)])
    return {"mixed": mixed, "merged": _figures(lm, lambda: merged.generate(**prompt), max_new_tokens, device, repeats)}


def xlora_generate(
    lm: LanguageModel, adapters: int, prompts: Sequence[str], max_new_tokens: int, *, device: str,
    start: Path | None = None, seed: int = 0, repeats: int = 5,
) -> Figures:  # fmt: skip
    """What `generate` gives, by PEFT's X-LoRA (see `with_xlora`), which reads the whole text anew for each token."""
    set_seed(seed)
    model: Any = with_xlora(lm, adapters, device, start=start).eval()
    _endless(model.base_model.lora_model.model, device)
    prompt = _prompt(lm, prompts, max_new_tokens, device)
    return _figures(lm, lambda: model.generate(**prompt), max_new_tokens, device, repeats)


def _endless(model: Any, device: str) -> Any:
    """The model on its device, with no token that ends a text."""
    model.to(device).generation_config.eos_token_id = None
    return model


def _prompt(lm: LanguageModel, prompts: Sequence[str], new: int, device: str, **settings: Any) -> dict[str, Any]:
    """What `generate` takes, for greedy continuations of one length."""
    pad = lm.tokenizer.pad_token_id
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=pad, **settings)
    inputs = lm.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(device)
    return {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"generation_config": config}


def _figures(lm: LanguageModel, continued: Callable[[], Tensor], new: int, device: str, repeats: int) -> Figures:
    torch.compiler.reset()
    tokens = continued()[:, -new:]
    found: Figures = {"tokens": tokens.tolist()}
    if repeats:
        found["seconds"] = median_seconds(continued, device, warmup=2, times=repeats)
        found["tokens_per_second"] = tokens.numel() / found["seconds"]
    return found
