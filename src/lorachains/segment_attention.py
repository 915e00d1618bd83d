"""Causal attention of a stream's segments, each to itself, as one operation that PyTorch can differentiate and compile.

On CUDA in half precision, by the kernels of `triton_attention`. PyTorch's own `varlen_attn` (FlashAttention-2) works on
tiles that are larger than most texts here, and needs copies of keys and values for each of the heads that share them.
"""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorachains.kernels import usable

LONGEST = 1024
"""Segments of up to so many tokens are faster here than by `varlen_attn`: see `benchmarks/own_kernels.py`."""
_WIDTHS = (16, 32, 64, 128)
_UNLIMITED = 1 << 30


def takes(query: Tensor, value: Tensor, longest: int) -> bool:
    """Whether the kernels can take such queries and values, `(tokens, heads, dim)`, and are worth it."""
    fits = query.shape[-1] == value.shape[-1] and query.shape[-1] in _WIDTHS
    return usable(query) and fits and longest <= LONGEST


def segment_attention(
    query: Float[Tensor, "tokens heads dim"],
    key: Float[Tensor, "tokens kv_heads dim"],
    value: Float[Tensor, "tokens kv_heads dim"],
    bounds: Int32[Tensor, " bounds"],
    longest: int,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "tokens heads dim"]:
    """Attention of each token to those of its own segment up to itself.

    Args:
        query, key, value: in half precision on a GPU, `dim` 16, 32, 64 or 128; `heads` is a multiple of `kv_heads`.
        bounds: where each segment begins, and the end.
        longest: no segment has more tokens.
        scale: of the scores; by default `dim ** -0.5`.
        window: how many tokens each attends to at most, itself included; `None` for no limit.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    window = _UNLIMITED if window is None else min(window, _UNLIMITED)
    return _attention(query, key, value, bounds, longest, scale, window)[0]


@torch.library.custom_op("lorachains::segment_attention", mutates_args=())
def _attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """The output, and of each head and token the logarithm to base 2 of its weights' sum, `(heads, tokens)`."""
    from lorachains import triton_attention  # imports Triton

    query, key, value = map(_in_rows, (query, key, value))
    with torch.cuda.device_of(query):
        return triton_attention.forward(query, key, value, bounds, longest, scale, window)


@torch.library.custom_op("lorachains::segment_attention_backward", mutates_args=())
def _backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, grad: Tensor, bounds: Tensor, longest: int,
    scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from lorachains import triton_attention

    query, key, value, grad = map(_in_rows, (query, key, value, grad))
    with torch.cuda.device_of(query):
        return triton_attention.backward(query, key, value, out, total, grad, bounds, longest, scale, window)


def _in_rows(tensor: Tensor) -> Tensor:
    """With a head's numbers of a token side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    tokens, heads, _dim = query.shape
    return query.new_empty(query.shape), query.new_empty(heads, tokens, dtype=torch.float32)


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.longest, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # of the sums there is none


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    query, key, value, bounds, out, total = ctx.saved_tensors
    given = (query, key, value, out, total, grad, bounds, ctx.longest, ctx.scale, ctx.window)
    return *_backward(*given), None, None, None, None


_attention.register_autograd(_differentiate, setup_context=_remember)
