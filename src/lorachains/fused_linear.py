"""Linear layers that read the same tensor, computed as one product: queries, keys and values; gate and up.

One large product keeps a GPU busier than two or three small ones; and the gradient with respect to what the layers read
is one product too, for which the gradients of their outputs are laid side by side. The layers' weights become parts of
one tensor, in place.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 1 << 23
"""So many numbers the layers of a group make at most where they are fused in training as well. Of more, laying their
gradients side by side costs more than the product saves: Inductor (torch 2.11) computes what it lays side by side once
for each part. By `benchmarks/speed.py side_by_side`, fused always and never, of SmolLM2-135M on an H200: 512 tokens are
9 % faster, 2,560 1 %, and 12,800 2 % slower."""


class FusedLinear(nn.Linear):
    """One of several layers; the first that is called with a tensor computes what all make of it.

    A layer that is moved or converted, alone or with its model, is a plain one again.

    Attributes:
        fusion: what the layers share.
        place: this layer's among them.
    """

    fusion: "_Fusion"
    place: int

    def forward(self, input: Tensor) -> Tensor:
        fusion = self.fusion
        if torch.is_grad_enabled() and not fusion.trains:
            return super().forward(input)
        if fusion.read is not input:
            fusion.read = input
            fusion.parts = F.linear(input, fusion.weight, fusion.bias).split(fusion.sizes, -1)
        part = fusion.parts[self.place]
        if self.place == len(fusion.sizes) - 1:
            fusion.read, fusion.parts = None, ()
        return part

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        del self.fusion, self.place
        self.__class__ = nn.Linear  # type: ignore[assignment]
        return self._apply(fn, recurse)


class _Fusion:
    """What fused layers share: their weights as one, whether they are fused in training too, and what they have made of
    the tensor read last."""

    def __init__(self, layers: Sequence[nn.Linear]):
        self.sizes = [layer.out_features for layer in layers]
        self.weight = _as_one([layer.weight for layer in layers], self.sizes)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _as_one(biases, self.sizes) if biases else None
        self.trains = False
        self.read: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()
        for place, layer in enumerate(layers):
            layer.__class__ = FusedLinear
            assert isinstance(layer, FusedLinear)
            layer.fusion, layer.place = self, place


def _as_one(parameters: Sequence[Tensor], sizes: Sequence[int]) -> nn.Parameter:
    """The parameters one below the other; they become parts of it."""
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, whole.split(sizes), strict=True):
        parameter.data = part
    return nn.Parameter(whole, requires_grad=False)  # a parameter, so that compiled code takes its shape as given


def fuse(groups: Sequence[Sequence[nn.Linear]]) -> None:
    """Fuses the layers of each group (`watched`), in place, but for groups in which one can't be, or is already.

    Fused are frozen layers, plain ones of one precision. Their weights move: graphs that were recorded before read on
    where they lay.
    """
    for layers in groups:
        first = layers[0]
        alike = all(
            type(layer) is nn.Linear
            and not any(parameter.requires_grad for parameter in layer.parameters())
            and (layer.weight.dtype, layer.weight.device) == (first.weight.dtype, first.weight.device)
            and (layer.bias is None) == (first.bias is None)
            for layer in layers
        )
        if alike:
            _Fusion(layers)
    if any(layers[0].weight.is_cuda for layers in groups):
        torch.cuda.empty_cache()  # what the weights have left are pieces too small for others


def choose_training(model: nn.Module, tokens: int) -> None:
    """Whether each group of fused layers is one product in training as well: where it makes `FEW` numbers at most.

    Args:
        tokens: of the largest batch.
    """
    for module in model.modules():
        if isinstance(module, FusedLinear):
            module.fusion.trains = tokens * sum(module.fusion.sizes) <= FEW


@contextmanager
def watched(model: nn.Module) -> Iterator[list[list[nn.Linear]]]:
    """Within, notes which linear layers read the same tensor; afterwards the list has those of each such tensor.

    Layers that are called more than once, or whose weight other modules have too, are left out.
    """
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    calls: list[tuple[Tensor, nn.Linear]] = []  # with the tensors themselves, so that no other takes an identity

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        if args:
            calls.append((args[0], layer))

    groups: list[list[nn.Linear]] = []
    with ExitStack() as stack:
        for module in model.modules():
            if type(module) is nn.Linear and all(owners[id(p)] == 1 for p in module.parameters()):
                stack.callback(module.register_forward_pre_hook(note).remove)
        yield groups
    readers: dict[int, list[nn.Linear]] = {}
    for read, layer in calls:
        readers.setdefault(id(read), []).append(layer)
    times = Counter(id(layer) for _, layer in calls)
    groups.extend(
        layers for layers in readers.values() if len(layers) > 1 and all(times[id(layer)] == 1 for layer in layers)
    )
