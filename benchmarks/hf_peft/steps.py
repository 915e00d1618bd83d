"""Single training steps of what Trainer has no part in: a batch for PEFT's mixed batches, and X-LoRA."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import XLoraConfig, get_peft_model
from torch import Tensor
from transformers import set_seed

from hf_peft.adapters import adapted, with_random_adapters
from hf_peft.batches import collator, columns
from hf_peft.clock import median_seconds
from hf_peft.settings import is_best
from hf_peft.training import Figures
from lorachains.batch import Tokens
from lorachains.models import LanguageModel


def mixed_training_step(
    lm: LanguageModel, rows: Sequence[Tokens], *, settings: str, device: str, lr: float = 5e-4, seed: int = 0,
    warmup: int = 10, steps: int = 50,
) -> Figures:  # fmt: skip
    """Forward, backward and AdamW step of ONE adapter on the batch of `rows`: PEFT trains no mixed batch.

    "best" is bf16 autocast and `torch.compile`. Returns the median seconds and the first step's loss.
    """
    with adapted(lm, device, seed) as model:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.0, fused=True)

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        compiled = torch.compile(model.train()) if is_best(settings) else model.train()
        return _steps(compiled, lm, rows, settings, device, update, warmup, steps)


def xlora_step(
    lm: LanguageModel, adapters: int, rows: Sequence[Tokens], *, device: str, trainable_adapters: bool = False,
    seed: int = 0, warmup: int = 10, steps: int = 50,
) -> Figures:  # fmt: skip
    """Forward and backward of PEFT's X-LoRA (arXiv 2402.07148) over random adapters, on the batch of `rows`.

    X-LoRA's own way trains the router alone; with `trainable_adapters` the adapters too. Returns the median seconds and
    the first loss. PEFT raises `ValueError` for Bloom and GPT-2, since it can't map the names of their layers.
    """
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        with_random_adapters(copy.deepcopy(lm.model), adapters).save_pretrained(folder, save_embedding_layers=False)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=lm.model.config.hidden_size,
            adapters={str(i): str(Path(folder, str(i))) for i in range(adapters)},  # PEFT knows no other names
            use_trainable_adapters=trainable_adapters,
        )
        model = get_peft_model(copy.deepcopy(lm.model), config).to(device).train()
    return _steps(model, lm, rows, "default", device, model.zero_grad, warmup, steps)


def _steps(
    model: Callable[..., Any], lm: LanguageModel, rows: Sequence[Tokens], settings: str, device: str,
    update: Callable[[], None], warmup: int, times: int,
) -> Figures:  # fmt: skip
    batch = collator(lm.tokenizer, settings)(columns(rows)).to(device)

    def step() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=is_best(settings)):
            loss: Tensor = model(**batch).loss
        loss.backward()
        update()
        return loss.detach()

    return {"loss": step().item(), "seconds": median_seconds(step, device, warmup, times)}
