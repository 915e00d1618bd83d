"""Chains and mixtures of LoRAs: COLA, Chain-of-LoRA and Mixture-of-LoRAs on one bank of stacked adapters."""

__version__ = "0.1.0"
