"""Base weights in 4 or 8 bits, by bitsandbytes: NF4 with quantised scales (QLoRA, arXiv 2305.14314, §3) and LLM.int8()
(arXiv 2208.07339)."""

import logging
from typing import Any

import torch
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
