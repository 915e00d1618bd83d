"""Generation by PEFT's mixed batches, and by a merged model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, set_seed

from hf_peft.adapters import with_random_adapters
from hf_peft.clock import median_seconds
from hf_peft.training import Figures
from lorachains.models import LanguageModel


def generate(
    lm: LanguageModel, adapters: int, prompts: Sequence[str], max_new_tokens: int, *, device: str, seed: int = 0,
    repeats: int = 5, cache: str | None = None,
) -> dict[str, Figures]:  # fmt: skip
    """Greedy continuations of exactly `max_new_tokens`, all prompts in one batch.

    Args:
        adapters: random LoRAs in the model's precision; prompt i gets the one of number i modulo `adapters`.
        cache: transformers' `cache_implementation`, such as "static"; None for its default.

    Returns:
        "mixed", by PEFT's `adapter_names`, and "merged", all prompts by adapter 0 in the weights: for each the median
        seconds, tokens_per_second and texts (the continuations).
    """
    set_seed(seed)
    base: Any = copy.deepcopy(lm.model)
    base.to(device).generation_config.eos_token_id = None  # no row ends early
    model = with_random_adapters(base, adapters).eval()
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, cache_implementation=cache,
        pad_token_id=lm.tokenizer.pad_token_id,
    )  # fmt: skip
    inputs = lm.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(device)
    prompt = {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"generation_config": config}

    def figures(continued: Callable[[], Tensor]) -> Figures:
        torch.compiler.reset()
        new = continued()[:, inputs["input_ids"].shape[1] :]
        seconds = median_seconds(continued, device, warmup=2, times=repeats)
        return {"seconds": seconds, "tokens_per_second": new.numel() / seconds, "texts": lm.tokenizer.batch_decode(new)}

    names = [str(i % adapters) for i in range(len(prompts))]
    mixed = figures(lambda: model.generate(**prompt, adapter_names=names))
    merged = model.merge_and_unload(adapter_names=["0"])
    return {"mixed": mixed, "merged": figures(lambda: merged.generate(**prompt))}
