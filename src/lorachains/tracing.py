"""Watches one training pass over a short text: which products it makes, and where gradients flow."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorachains import scoring
from lorachains.bank import LoraBank
from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.flops import AttentionCall, LinearCall, Trace
from lorachains.graphs import decoder_layers
from lorachains.packing import PACKED, one_kernel, packed_attention, packs
from lorachains.scoring import ends_in_head


def short_batch(experts: int) -> TokenBatch:
    """A text of four tokens for the first adapter."""
    text = Tokens([0, 1, 2, 3], [-100, -100, 2, 3])
    return pack([text], None if experts == 1 else [0], experts=experts)


def trace(model: PreTrainedModel, batch: TokenBatch, loss: Callable[[], Tensor]) -> Trace:
    """The trace of a training pass in the model's present mode. Random numbers stay as they were.

    Args:
        batch: what the pass is over.
        loss: makes the forward pass, and gives a scalar. It sets the route, if there are several adapters.

    Returns:
        Of a model without a language model's head, no more than that its products aren't known.
    """
    if model.get_output_embeddings() is None:
        return Trace(streams=False, kernel=False, uncounted=[f"a {type(model).__name__}"])
    streams = packs(model)
    found = Trace(streams, kernel=streams and one_kernel(model), uncounted=_uncounted(model))
    devices = [model.device] if model.device.type == "cuda" else []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), _watched(model, found) as backward:
        value = loss()
        backward()
        torch.autograd.grad(value, trained, allow_unused=True)
    if ends_in_head(model, batch):  # tried out with the route that `loss` has set
        found.chunk = scoring.CHUNK
    return found


@contextmanager
def _watched(model: PreTrainedModel, found: Trace) -> Iterator[Callable[[], None]]:
    """Within, the model's calls are added to the trace; the function given says that the backward pass begins."""
    head, again = model.get_output_embeddings(), False

    def begin_backward() -> None:
        nonlocal again
        again = True

    def begin(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():  # what is read without training, once for all epochs (`mixture`)
            return
        found.linear.append(LinearCall(layer, layer is head, args[0].requires_grad, again))

    def end(layer: nn.Module, args: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            found.linear[-1].ended = True

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return packed_attention(module, query, key, value, *args, **kwargs)
        heads, width = query.shape[1], query.shape[-1]
        flows = (query.requires_grad, key.requires_grad, value.requires_grad)
        window = kwargs.get("sliding_window")
        found.attention.append(AttentionCall(heads * width, heads * value.shape[-1], window, flows, again))
        return packed_attention(module, query, key, value, *args, **kwargs)

    def attend_padded(layer: nn.Module, args: Any, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        width = model.config.hidden_size
        found.attention.append(AttentionCall(width, width, None, (output.requires_grad,) * 3, again))

    with ExitStack() as stack:
        for layer in _linear_layers(model):
            stack.callback(layer.register_forward_pre_hook(begin).remove)
            stack.callback(layer.register_forward_hook(end).remove)
        if not found.streams:  # not told of its attention, so that the layer before it stands for it
            for layer in decoder_layers(model):
                stack.callback(_linear_layers(layer)[0].register_forward_hook(attend_padded).remove)
        AttentionInterface.register(PACKED, attend)
        stack.callback(AttentionInterface.register, PACKED, packed_attention)
        yield begin_backward


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    """Banks, and linear layers outside of them."""
    inside = {id(module.base_layer) for module in model.modules() if isinstance(module, LoraBank)}
    return [module for module in model.modules() if _is_linear(module) and id(module) not in inside]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, Conv1D) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _uncounted(model: nn.Module) -> list[str]:
    known = [module for module in model.modules() if _is_linear(module) or isinstance(module, nn.Embedding)]
    seen = {id(parameter) for module in known for parameter in module.parameters(recurse=False)}
    return [name for name, weight in model.named_parameters() if weight.dim() > 1 and id(weight) not in seen]
