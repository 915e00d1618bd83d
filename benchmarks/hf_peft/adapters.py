"""PEFT's adapters on a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import set_seed

from lorachains.models import LanguageModel


@contextmanager
def adapted(lm: LanguageModel, device: str, seed: int, start: Path | None = None) -> Iterator[PeftModel]:
    """The model with one LoRA to train, within."""
    torch.compiler.reset()  # another model's compiled code would count towards the limit of recompilations
    set_seed(seed)
    base: Any = lm.model
    base.to(device)
    model: PeftModel
    if start is None:
        model = get_peft_model(base, lora("gaussian"))
    else:
        model = PeftModel.from_pretrained(base, start, is_trainable=True, torch_device=device)
    try:
        yield model
    finally:
        model.unload()
        del model
        gc.collect()  # Trainer and its callbacks hold each other


def lora(init: Any) -> LoraConfig:
    """COLA App. A.1 (conf/peft/lora.yaml); PEFT chooses the layers."""
    return LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, init_lora_weights=init)


def with_random_adapters(base: nn.Module, adapters: int) -> PeftModel:
    """Named "0", "1", …; for inference, so in the weights' precision, which is faster."""
    model = get_peft_model(base, lora(False), adapter_name="0", autocast_adapter_dtype=False)
    for i in range(1, adapters):
        model.add_adapter(str(i), lora(False), autocast_adapter_dtype=False)
    return model
