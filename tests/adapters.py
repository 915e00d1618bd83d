"""What the tests of banks and chains share: chains with random factors, and PEFT models with the same weights."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from lorachains.chain import Chain
from tests.tiny import VOCAB_SIZE

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "up_proj"],
    "opt": ["q_proj", "v_proj", "fc1"],
    "bloom": ["query_key_value", "dense"],
    "gpt2": ["c_attn", "c_fc"],
}
WITH_BIAS = ["opt", "bloom", "gpt2"]
"""Architectures whose targeted layers have a bias, as `lora_bias` needs it."""
BIAS: dict[str, Any] = {"lora_bias": True, "init_lora_weights": True}
ARCH_AND_FIELDS: list[tuple[str, dict[str, Any]]] = [(arch, {}) for arch in TARGETS] + [
    (arch, BIAS) for arch in WITH_BIAS
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def config(arch: str, **fields: Any) -> LoraConfig:
    """A LoRA config for the architecture."""
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS.get(arch, "all-linear"),
        "init_lora_weights": "gaussian",
    } | fields
    return LoraConfig(**settings)


def randomise(chain: Chain, seed: int = 0) -> None:
    """Random live factors (and biases), in place, so that every adapter does something of its own."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in chain.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def inputs(rows: int, seq: int = 9, seed: int = 0) -> Tensor:
    """Random tokens `(rows, seq)`."""
    return torch.randint(3, VOCAB_SIZE, (rows, seq), generator=torch.Generator().manual_seed(seed))


def peft_twin(model: PreTrainedModel, chain: Chain, expert: int) -> PeftModel:
    """PEFT's model over `model` with the live link of one adapter of the chain."""
    twin = get_peft_model(model, chain.config)
    state = twin.state_dict()
    for name, bank in chain.banks.items():
        prefix = f"base_model.model.{name}"
        state[f"{prefix}.lora_A.default.weight"].copy_(bank.lora_A[expert].detach())
        state[f"{prefix}.lora_B.default.weight"].copy_(bank.lora_B[expert].detach())
        if bank.lora_bias is not None:
            state[f"{prefix}.lora_B.default.bias"].copy_(bank.lora_bias[expert].detach())
    return twin


def peft_gradients(twin: PeftModel) -> dict[str, Tensor]:
    """The gradients of PEFT's factors by the names that a chain's bank gives them."""
    short = {"lora_A.default.weight": "lora_A", "lora_B.default.weight": "lora_B", "lora_B.default.bias": "lora_bias"}
    gradients = {}
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            layer, _, key = name.removeprefix("base_model.model.").partition(".lora_")
            gradients[f"{layer}.{short['lora_' + key]}"] = parameter.grad
    return gradients
