"""Decoder layers compiled once for all batch sizes, and passes over a model replayed as CUDA graphs, one for each size.

A training step of a small model is a thousand kernels of a few microseconds, which Python starts more slowly than the
GPU runs them. A graph starts them all at once. It needs fixed shapes and addresses: batches are filled up to a few
sizes (`filling`) and copied into the graph's own tensors; what a knot changes, it changes in place.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorachains.batch import TokenBatch
from lorachains.memory import own_workspaces
from lorachains.packing import one_kernel, packs

log = logging.getLogger(__name__)

Pass = Callable[[TokenBatch], tuple[Tensor, ...]]
"""A pass over a model: from a batch to tensors."""

OPTIONS = {"fallback_random": True}
"""Inductor's. Dropout is PyTorch's own kernel, and the same as in plain passes: Inductor's draws each number by a whole
Philox of four."""

_Result = TypeVar("_Result")


def why_not(model: PreTrainedModel) -> str | None:
    """What keeps passes over the model from being compiled and replayed; `None` if nothing does."""
    if model.device.type != "cuda":
        return "the model is not on a CUDA device"
    if not packs(model):
        return f"{type(model).__name__} can't read texts in one stream, so that shapes differ from batch to batch"
    if not one_kernel(model):
        return "attention in one kernel needs bfloat16 or float16, and no dropout on attention weights"
    return None


def compile_layers(model: PreTrainedModel, beside: Sequence[nn.Module] = (), back: bool = False) -> None:
    """Compiles the decoder layers, in place: as one function, since they differ in their weights alone.

    Args:
        beside: further modules, each by itself.
        back: takes that back instead.
    """
    torch._dynamo.config.specialize_float = True  # else OPT's scaling is a tensor of the host's, with C++ built for it
    for layer in (*decoder_layers(model), *beside):
        if back:
            layer._compiled_call_impl = None
        else:
            layer.compile(dynamic=True, options=OPTIONS)
    if back:
        return

    def needs_grad(_: nn.Module, __: object, embedded: Tensor) -> None:
        if torch.is_grad_enabled() and not embedded.requires_grad:
            embedded.requires_grad_()  # else the first layer's input has no gradient, and it is compiled once more

    model.get_input_embeddings().register_forward_hook(needs_grad)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of decoder layers."""
    depth = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    batch: TokenBatch
    outputs: tuple[Tensor, ...]


class Replayed:
    """A pass that is recorded for each size of batch at its second time (since the last change), and replayed.

    Args:
        run: the pass. What it reads beside the batch must stay where it is.
        device: the GPU.
        layout: a number that changes when something that the pass reads has moved; all is recorded anew then.
    """

    def __init__(self, run: Pass, device: torch.device, layout: Callable[[], int]):
        self.run, self.device, self.layout = run, device, layout
        self._met: set[tuple[object, ...]] = set()
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._of_layout = layout()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, batch: TokenBatch) -> tuple[Tensor, ...]:
        """The pass over a filled batch from the host.

        Returns:
            Tensors that the next call overwrites.
        """
        if self._of_layout != self.layout():
            self._recorded.clear()
            self._met.clear()  # what has another shape is compiled anew, which can't be done during a recording
            self._pool = torch.cuda.graph_pool_handle()  # the old one is gone with its last graph
            self._of_layout = self.layout()
        key = (*((name, *tensor.shape) for name, tensor in batch.tensors().items()), batch.longest)
        if key not in self._met:
            self._met.add(key)  # compiles, and sets up what may not be set up during the recording
            return self._aside(self.run, batch.to(self.device))
        if key not in self._recorded:
            self._recorded[key] = self._aside(self._record, batch.to(self.device))
        found = self._recorded[key]
        for name, tensor in batch.tensors().items():
            getattr(found.batch, name).copy_(tensor, non_blocking=True)
        found.graph.replay()
        return found.outputs

    def _aside(self, work: Callable[[TokenBatch], _Result], batch: TokenBatch) -> _Result:
        """Does it on the one stream for passes and recordings: autograd's leaves remember theirs."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _record(self, batch: TokenBatch) -> _Recorded:
        torch.cuda.synchronize()
        torch.clear_autocast_cache()  # weights in half precision from before would be read at each replay, for ever
        torch.cuda.empty_cache()  # the recording needs as much again, from memory of its own; and others share the GPU
        graph = torch.cuda.CUDAGraph()
        with own_workspaces():
            # Not `with torch.cuda.graph`, which collects garbage as well: a second, each time.
            graph.capture_begin(pool=self._pool)
            try:
                outputs = self.run(batch)
            finally:
                graph.capture_end()
        return _Recorded(graph, batch, outputs)
