"""Trainer's settings: its own ("default"), or those with which a competent user makes it fast ("best"), or with
liger-kernel's kernels instead of compiled ones ("liger")."""

from typing import Any

import torch
from transformers.utils.import_utils import is_liger_kernel_available

from lorachains.errors import LorachainsError


def is_best(settings: str) -> bool:
    """Whether they are "best" or "liger". Raises `LorachainsError` for another word than "default"."""
    if settings not in ("default", "best", "liger"):
        raise LorachainsError(f"settings is {settings!r}: give default, best or liger")
    return settings != "default"


def arguments(settings: str, cuda: bool) -> dict[str, Any]:
    """Of `TrainingArguments`.

    Raises:
        LorachainsError: Trainer would spread over several GPUs, or liger-kernel isn't there.
    """
    if cuda and torch.cuda.device_count() > 1:
        raise LorachainsError(
            f"{torch.cuda.device_count()} GPUs are visible, over which Trainer would spread: set CUDA_VISIBLE_DEVICES=0"
        )
    if settings == "liger" and not (cuda and is_liger_kernel_available()):
        raise LorachainsError("settings is liger, but liger-kernel is not installed, or there is no GPU")
    always = {
        "use_liger_kernel": settings == "liger",
        "use_cpu": not cuda,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    compiled = {"torch_compile": settings != "liger"}  # inside it liger-kernel 0.8.5 computes nonsense, losses of -1e34
    return always | (_best(cuda) | compiled if is_best(settings) else {})


def _best(cuda: bool) -> dict[str, Any]:
    """What makes Trainer faster on one device and changes no more than the rounding and which rows share a batch."""
    on_cuda = {
        "tf32": True, "dataloader_pin_memory": True, "accelerator_config": {"non_blocking": True},
    }  # fmt: skip
    return {
        "bf16": True, "optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length",
        "logging_nan_inf_filter": False,  # waits for the device in each step
    } | (on_cuda if cuda else {})  # fmt: skip
