"""Trainings of one LoRA by HF Trainer, timed step by step."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_peft.adapters import adapted
from hf_peft.batches import collator, columns
from hf_peft.clock import Clock
from hf_peft.settings import arguments
from lorachains.batch import Tokens
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel

Figures = dict[str, Any]


def train(
    lm: LanguageModel, rows: Sequence[Tokens], *, settings: str, batch_size: int, lr: float, seed: int, device: str,
    steps: int | None = None, epochs: int | None = None, warmup: int = 10, record: bool = False,
    start: Path | None = None, overrides: Mapping[str, Any] | None = None,
) -> Figures:  # fmt: skip
    """Trains a LoRA: linear schedule, no warm-up of the rate, AdamW without weight decay.

    Args:
        steps, epochs: optimizer steps, or passes over the rows; give one of the two.
        warmup: optimizer steps that the figures of a step leave out; those that compile should be among them.
        record: keep each step's loss, for which the host waits for the device in each step.
        start: a PEFT adapter to begin with, to compare with another run from there; else a new one, drawn by `seed`.
        overrides: further `TrainingArguments`, such as `max_grad_norm=0` or `train_sampling_strategy="sequential"`;
            none that makes batches elsewhere or several for a step (workers, accumulation): tokens would be miscounted.

    Returns:
        steps; seconds of `Trainer.train`, compilation included; step_seconds, the median, with data loading and the
        host's work; tokens_per_second without padding, over all steps after the warm-up; loss, the mean of all steps;
        losses of each; peak_memory_bytes (0 on the CPU); liger, whether it was used.
    """
    if (steps is None) == (epochs is None):
        raise LorachainsError(f"steps is {steps} and epochs is {epochs}: give one of the two")
    given: Figures = {"per_device_train_batch_size": batch_size, "learning_rate": lr, "seed": seed}
    given |= {"max_steps": steps} if epochs is None else {"num_train_epochs": epochs}
    given |= ({"logging_steps": 1} if record else {}) | dict(overrides or {})
    with adapted(lm, device, seed, start) as model:
        return fit(model, lm.tokenizer, rows, settings, device, warmup, given, [])


def fit(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens], settings: str, device: str,
    warmup: int, given: Mapping[str, Any], callbacks: Sequence[TrainerCallback],
) -> Figures:  # fmt: skip
    """Trains what is trainable in `model`: see `train` for what it returns, `TrainingArguments` for `given`."""
    collate, times, cuda = collator(tokenizer, settings), _StepTimes(device), torch.device(device).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**{**arguments(settings, cuda), **given, "output_dir": folder})
        trainer = Trainer(model, args, collate, columns(rows), callbacks=[times, *callbacks])
        trainer.remove_callback(PrinterCallback)
        _check_warmup(trainer, warmup)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        begin = time.perf_counter()
        output = trainer.train()
        steps = times.seconds()  # waits for the device
        seconds = time.perf_counter() - begin
    tokens = sum(collate.tokens[warmup : len(steps)])
    return {
        "steps": len(steps), "seconds": seconds, "step_seconds": median(steps[warmup:]),
        "tokens_per_second": tokens / sum(steps[warmup:]), "loss": output.training_loss,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else 0, "liger": args.use_liger_kernel,
    }  # fmt: skip


def _check_warmup(trainer: Trainer, warmup: int) -> None:
    args = trainer.args
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * len(trainer.get_train_dataloader()))
    if steps <= warmup:
        raise LorachainsError(f"warmup is {warmup}, but there are {steps} steps: train for longer")


class _StepTimes(TrainerCallback):
    """Times each optimizer step from the end of the one before; what lies between two epochs belongs to none."""

    def __init__(self, device: str) -> None:
        self.clock = Clock(torch.device(device))
        self.ends: list[bool] = []  # of the marks, which end a step

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()
        self.ends.append(False)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()
        self.ends.append(True)

    def seconds(self) -> list[float]:
        return list(compress(self.clock.seconds(), self.ends[1:]))
