"""Base weights in 4 or 8 bits, by bitsandbytes: NF4 with quantised scales (QLoRA, arXiv 2305.14314, §3) and LLM.int8()
(arXiv 2208.07339)."""

import copy
import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from lorachains.errors import LorachainsError


def quantized(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What `from_pretrained` needs to quantise the decoder's linear layers as `model.quantization` says.

    Args:
        dtype: in which the layers compute.

    Raises:
        LorachainsError: another word than nf4 or int8, or bitsandbytes is not installed.
    """
    if kind not in ("nf4", "int8"):
        raise LorachainsError(f"model.quantization is {kind!r}: give nf4, int8 or null")
    if not is_bitsandbytes_available():
        raise LorachainsError(
            f"model.quantization is {kind}, which needs bitsandbytes: pip install 'lorachains[quantization]'"
        )
    if kind == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns at every product
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_weights(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes from laying out 4-bit weights anew, in place, as it does on some CPUs in evaluation mode.

    Neither training nor the base's fingerprint could follow, and sizes that are no multiples of its blocks fail.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer holds its weight in 4 or 8 bits."""
    return type(layer).__name__ in ("Linear4bit", "Linear8bitLt")


def stored(layer: Any) -> list[Tensor]:
    """The tensors that hold a quantised layer's weight: its codes, then their scales. Copied into, they change it."""
    if type(layer).__name__ == "Linear8bitLt":
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # moved there by the first pass
        return [layer.weight.data, scales]
    return [layer.weight.data, *_scales(layer.weight.quant_state)]


def dequantized(layer: Any) -> Float[Tensor, "out in"]:
    """A quantised layer's weight in float32."""
    from bitsandbytes import functional

    if type(layer).__name__ == "Linear8bitLt":
        return functional.int8_vectorwise_dequant(*stored(layer)).float()
    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32  # as it is computed, not rounded to the base's
    return functional.dequantize_4bit(layer.weight.data, state)


@torch.no_grad()
def requantize(layer: Any, weight: Float[Tensor, "out in"]) -> None:
    """Puts another weight into a quantised layer, quantised as the one before was; no tensor moves."""
    from bitsandbytes import functional

    if type(layer).__name__ == "Linear8bitLt":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        new = [codes, scales]
    else:
        old = layer.weight
        codes, state = functional.quantize_4bit(
            weight.float(), blocksize=old.blocksize, compress_statistics=old.compress_statistics,
            quant_type=old.quant_type, quant_storage=old.quant_storage,
        )  # fmt: skip
        new = [codes, *_scales(state)]
    for into, value in zip(stored(layer), new, strict=True):
        into.copy_(value)


def _scales(state: Any) -> list[Tensor]:
    return [state.absmax, state.offset, state.state2.absmax] if state.nested else [state.absmax]
