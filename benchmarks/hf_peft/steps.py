"""Single training steps of what Trainer has no part in: a batch for PEFT's mixed batches, and X-LoRA."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from hf_peft.adapters import adapted, with_xlora
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
    start: Path | None = None, seed: int = 0, warmup: int = 10, steps: int = 50,
) -> Figures:  # fmt: skip
    """Forward and backward of PEFT's X-LoRA, see `with_xlora`, on the batch of `rows`.

    Returns the median seconds and the first loss. PEFT raises `ValueError` for Bloom and GPT-2, since it can't map the
    names of their layers.
    """
    set_seed(seed)
    model = with_xlora(lm, adapters, device, trainable_adapters, start).train()
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
