"""The project's kernels against PyTorch's for the same work, at a model's sizes: forward, and with the backward pass.

    python benchmarks/own_kernels.py attention model=smollm2-135m tokens=16,64,128,256,512,1024,2048
    python benchmarks/own_kernels.py lora model=smollm2-135m adapters=2,8,25,32

`attention` is that of a stream of texts of so many tokens each, by `segment_attention` and `varlen_attn`
(FlashAttention-2, with keys and values copied for the heads that share them); `lora` one layer's LoRAs, hidden size to
hidden size, of a stream that so many adapters share, by `stream_lora` and two `grouped_mm`. Prints JSON: microseconds,
of CUDA graphs that are replayed. That both compute the same is checked first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from command_line import run
from measuring import DEVICE, Figures, load, settings
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from lorachains.batch import BLOCK
from lorachains.errors import LorachainsError
from lorachains.segment_attention import segment_attention
from lorachains.stream_lora import stream_lora

TOLERANCE = 2e-2
"""Of both sides' outputs and gradients in bfloat16, relative to their norm."""


def attention(name: str, tokens: Sequence[int] = (16, 64, 128, 256, 512, 1024, 2048), stream: int = 16384) -> Figures:
    """Of texts of each number of tokens.

    Args:
        stream: tokens of all texts together, at most.
    """
    config = _config(name)
    heads = config.num_attention_heads
    sharing = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    found: Figures = {"heads": heads, "key and value heads": sharing, "dim": dim}
    for length in tokens:
        bounds = torch.arange(0, stream + 1, length, dtype=torch.int32, device=DEVICE)
        size = int(bounds[-1])
        inputs = [_drawn(size, count, dim) for count in (heads, sharing, sharing)]

        def ours(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor = bounds, length: int = length) -> Tensor:
            return segment_attention(q, k, v, bounds, length)

        def theirs(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor = bounds, length: int = length) -> Any:
            k, v = (t.repeat_interleave(heads // sharing, 1) if sharing < heads else t for t in (k, v))
            return varlen_attn(q, k, v, bounds, bounds, length, length, window_size=(-1, 0))

        found[f"texts of {length}"] = _compared(ours, theirs, inputs)
    return found


def lora(name: str, adapters: Sequence[int] = (2, 8, 25, 32), rank: int = 8, stream: int = 16384) -> Figures:
    """Of streams that each number of adapters share alike.

    Args:
        stream: tokens of all adapters together, at most.
    """
    width = _config(name).hidden_size
    found: Figures = {"features": width, "rank": rank}
    for count in adapters:
        blocks = stream // BLOCK // count
        owners = torch.arange(count, device=DEVICE).repeat_interleave(blocks)
        ends = torch.arange(1, count + 1, dtype=torch.int32, device=DEVICE) * (blocks * BLOCK)
        inputs = [_drawn(len(owners) * BLOCK, width), _drawn(count, rank, width), _drawn(count, width, rank)]

        def ours(x: Tensor, a: Tensor, b: Tensor, owners: Tensor = owners, ends: Tensor = ends) -> Tensor:
            return stream_lora(x, a, b, owners, ends)

        def theirs(x: Tensor, a: Tensor, b: Tensor, ends: Tensor = ends) -> Tensor:
            return F.grouped_mm(F.grouped_mm(x, a.mT, offs=ends), b.mT, offs=ends)

        found[f"{count} adapters"] = _compared(ours, theirs, inputs)
    return found


def _config(name: str) -> Any:
    """The model's.

    Raises:
        LorachainsError: no GPU is visible.
    """
    if DEVICE != "cuda":
        raise LorachainsError("no GPU is visible, whose kernels are to be measured")
    return load(settings(name)).model.config.get_text_config()


def _drawn(*size: int) -> Tensor:
    return torch.randn(size, device=DEVICE, dtype=torch.bfloat16).requires_grad_()


def _compared(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Figures:
    """Microseconds of both.

    Raises:
        LorachainsError: they don't compute the same.
    """
    with torch.no_grad():
        given = torch.randn_like(theirs(*inputs))
    passes = {
        side: lambda of=of: (out := of(*inputs), *torch.autograd.grad(out, inputs, given))
        for side, of in (("ours", ours), ("PyTorch's", theirs))
    }
    for one, other in zip(*(made() for made in passes.values()), strict=True):
        if (off := float((one - other).float().norm() / other.float().norm())) > TOLERANCE:
            raise LorachainsError(f"the two differ by {off:.1e} of their norm: their times say nothing")
    from triton.testing import do_bench_cudagraph  # only where there is a GPU

    found: Figures = {}
    for side, of in (("ours", ours), ("PyTorch's", theirs)):
        without = [tensor.detach() for tensor in inputs]
        found[side] = {
            "forward": 1e3 * do_bench_cudagraph(lambda of=of, given=without: of(*given), return_mode="median"),
            "forward and backward": 1e3 * do_bench_cudagraph(passes[side], return_mode="median"),
        }
    for part in ("forward", "forward and backward"):
        found[f"PyTorch's / ours, {part}"] = found["PyTorch's"][part] / found["ours"][part]
    return found


if __name__ == "__main__":
    run({"attention": attention, "lora": lora})
