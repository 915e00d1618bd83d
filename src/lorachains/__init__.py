"""Chains and mixtures of LoRAs: COLA, Chain-of-LoRA and Mixture-of-LoRAs on one bank of stacked adapters."""

__version__ = "0.1.0"

import logging

# bitsandbytes, which PEFT imports where it is installed, tells every start that it lacks optional kernels for the CPU.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
