"""PEFT's adapters on a model."""

import copy
import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
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


def named(number: int) -> str:
    """An adapter's name; by plain numbers PEFT would leave the decoder layers of the others' numbers out of a file."""
    return f"adapter{number}"


def with_random_adapters(base: nn.Module, adapters: int) -> PeftModel:
    """`named` 0, 1, …; for inference, so in the weights' precision, which is faster."""
    model = get_peft_model(base, lora(False), adapter_name=named(0), autocast_adapter_dtype=False)
    for i in range(1, adapters):
        model.add_adapter(named(i), lora(False), autocast_adapter_dtype=False)
    return model


def with_xlora(
    lm: LanguageModel, adapters: int, device: str, trainable: bool = False, start: Path | None = None
) -> PeftModel:
    """A copy of the model under X-LoRA (arXiv 2402.07148), in which the router alone is trained.

    Args:
        trainable: whether the adapters are trained too.
        start: a PEFT adapter, which all of them are; random ones if `None`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if start is None:
            some = with_random_adapters(copy.deepcopy(lm.model), adapters)
            some.save_pretrained(folder, save_embedding_layers=False)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=lm.model.config.hidden_size,
            adapters={
                str(i): str(start or Path(folder, named(i))) for i in range(adapters)
            },  # PEFT knows no other names
            use_trainable_adapters=trainable,
        )
        model: PeftModel = get_peft_model(copy.deepcopy(lm.model), config).to(device)
        return model
