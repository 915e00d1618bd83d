"""Chains of LoRAs at work: which task an instruction asks for, and that task's answer (Chain-of-LoRA, §II-A)."""
