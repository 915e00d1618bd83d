"""The LoRAs of a stream of tokens that stand adapter by adapter, as one operation that PyTorch can differentiate.

On CUDA in half precision, by the kernels of `triton_lora`. PyTorch's own `grouped_mm` is made for higher ranks
(`benchmarks/own_kernels.py`).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor


def stream_lora(
    x: Float[Tensor, "tokens in_features"],
    a: Float[Tensor, "experts rank in_features"],
    b: Float[Tensor, "experts out_features rank"],
    adapters: Int64[Tensor, " blocks"],
    ends: Int32[Tensor, " experts"],
    active: Bool[Tensor, " tokens"] | None = None,
) -> Float[Tensor, "tokens out_features"]:
    """`B A x` of each token's adapter.

    Args:
        x, a, b: in half precision on a GPU (`kernels.usable`).
        adapters: of each of equally long blocks of tokens, 16 or another power of two above; ascending.
        ends: where each adapter's tokens end.
        active: which tokens are served; the others get 0. `None` if all are.
    """
    return _lora(x, a, b, adapters, ends, active)[0]


def add_lora(
    y: Float[Tensor, "groups tokens out_features"],
    x: Float[Tensor, "groups tokens in_features"],
    a: Float[Tensor, "groups rank in_features"],
    b: Float[Tensor, "groups out_features rank"],
) -> None:
    """Adds `B A x` of each group's adapter to `y`, without gradients: for few tokens, in one launch.

    Args:
        y, x, a, b: in half precision on a GPU (`kernels.usable`), the rank 64 at most.
    """
    from lorachains import triton_lora

    with torch.cuda.device_of(x):
        triton_lora.add(y, x.contiguous(), a, b)


@torch.library.custom_op("lorachains::stream_lora", mutates_args=())
def _lora(
    x: Tensor, a: Tensor, b: Tensor, adapters: Tensor, ends: Tensor, active: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output, and `A x`."""
    from lorachains import triton_lora  # imports Triton

    with torch.cuda.device_of(x):
        hidden = _activated(triton_lora.down(_in_rows(x), a, adapters), active)
        return triton_lora.up(hidden, b, adapters), hidden


@torch.library.custom_op("lorachains::stream_lora_backward", mutates_args=())
def _backward(
    x: Tensor, a: Tensor, b: Tensor, hidden: Tensor, grad: Tensor, adapters: Tensor, ends: Tensor,
    active: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from lorachains import triton_lora

    x, grad = _in_rows(x), _in_rows(grad)
    with torch.cuda.device_of(x):
        of_hidden = _activated(triton_lora.down(grad, b.mT, adapters), active)
        of_a = triton_lora.summed(of_hidden, x, ends, ranks_last=False)
        of_b = triton_lora.summed(hidden, grad, ends, ranks_last=True)
        return triton_lora.up(of_hidden, a.mT, adapters), of_a, of_b


def _activated(hidden: Tensor, active: Tensor | None) -> Tensor:
    return hidden if active is None else hidden.masked_fill_(~active.unsqueeze(1), 0)


def _in_rows(tensor: Tensor) -> Tensor:
    """With a token's features side by side."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


@_lora.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], b.shape[1]), x.new_empty(x.shape[0], a.shape[1])


@_backward.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # of `A x` there is none


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    x, a, b, adapters, ends, active, hidden = ctx.saved_tensors
    return *_backward(x, a, b, hidden, grad, adapters, ends, active), None, None, None


_lora.register_autograd(_differentiate, setup_context=_remember)
