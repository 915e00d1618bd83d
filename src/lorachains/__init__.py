"""Chains and mixtures of LoRAs: COLA, Chain-of-LoRA and Mixture-of-LoRAs on one bank of stacked adapters."""

__version__ = "0.1.0"

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorachains.answering.engine import Answerer

# bitsandbytes, which PEFT imports where it is installed, tells every start that it lacks optional kernels for the CPU.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load(folder: str, **settings: Any) -> "Answerer":
    """A run's folder as something that answers: see `lorachains.answering.loading.load`."""
    from lorachains.answering.loading import load  # not at the top: it takes seconds

    return load(folder, **settings)
