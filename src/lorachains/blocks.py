"""A model's decoder blocks: what each of them reads, and a route of its own for the banks in each.

A block is one place for a router, which its attention and its feed-forward network share; or it is two, the second of
which reads what the feed-forward network's first linear layer reads (MoA's ablation of shared routers).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorachains.bank import LoraBank
from lorachains.errors import LorachainsError
from lorachains.graphs import decoder_layers
from lorachains.routing import Route, Routing

See = Callable[[int, Tensor], None]
"""Gets a block's number and its input, before the block runs."""


class Blocks:
    """The decoder blocks and the banks in each; where they aren't shared, their halves, one after the other.

    Args:
        shared: whether a block's attention and feed-forward network share a place.

    Attributes:
        routings: of each block, for its banks to follow while they are `routed` apart.

    Raises:
        LorachainsError: a bank is in no block, or a half has none.
    """

    def __init__(self, model: PreTrainedModel, banks: Mapping[str, LoraBank], shared: bool = True):
        places = [place for layer in decoder_layers(model) for place in ([_whole(layer)] if shared else _halves(layer))]
        self.layers, self.banks = [layer for layer, _ in places], [of_block for _, of_block in places]
        self.routings = [Routing() for _ in self.layers]
        inside = {id(bank) for of_block in self.banks for bank in of_block}
        if outside := [name for name, bank in banks.items() if id(bank) not in inside]:
            raise LorachainsError(
                f"adapter.target_modules takes in {outside[0]}, which is in no decoder block, so that no router "
                "serves it: leave it out"
            )

    def __len__(self) -> int:
        return len(self.layers)

    @contextmanager
    def watched(self, see: See) -> Iterator[None]:
        """Within, `see` is called with each block's input. It stands outside of what is compiled."""
        compiled = [layer._compiled_call_impl for layer in self.layers]
        for number, layer in enumerate(self.layers):
            layer._compiled_call_impl = partial(_call, layer._compiled_call_impl or layer._call_impl, see, number)
        try:
            yield
        finally:
            for layer, before in zip(self.layers, compiled, strict=True):
                layer._compiled_call_impl = before

    @contextmanager
    def routed(self, routes: Sequence[Route] | None = None) -> Iterator[None]:
        """Within, the banks of each block follow the block's own routing, which is forgotten at the end.

        A route by the routers' logits holds all that these were made of; autograd's leaves, which remember the stream
        of the pass that first met them, would outlive it, and could not be part of a CUDA graph on another stream.

        Args:
            routes: of each block; `None` where they are set on the way (`routings`).
        """
        for routing, route in zip(self.routings, routes or (), strict=False):
            routing.route = route
        shared = [[bank.routing for bank in of_block] for of_block in self.banks]
        for of_block, routing in zip(self.banks, self.routings, strict=True):
            for bank in of_block:
                bank.routing = routing
        try:
            yield
        finally:
            for of_block, before in zip(self.banks, shared, strict=True):
                for bank, routing in zip(of_block, before, strict=True):
                    bank.routing = routing
            for routing in self.routings:
                routing.route = None


def _whole(layer: nn.Module) -> tuple[nn.Module, list[LoraBank]]:
    return layer, [module for module in layer.modules() if isinstance(module, LoraBank)]


def _halves(layer: nn.Module) -> list[tuple[nn.Module, list[LoraBank]]]:
    """The layer for its attention, and its first linear layer beyond that for its feed-forward network."""
    kinds = LoraBank | nn.Linear | Conv1D
    linear = [(name, module) for name, module in layer.named_modules() if isinstance(module, kinds)]
    beyond = [module for name, module in linear if "attn" not in name and "attention" not in name]
    feed_forward = [module for module in beyond if isinstance(module, LoraBank)]
    attention = [bank for bank in _whole(layer)[1] if all(bank is not other for other in feed_forward)]
    if not attention or not feed_forward:
        raise LorachainsError(
            "method.share_router=false needs LoRAs in each block's attention and in its feed-forward network: name "
            "layers of both in adapter.target_modules, or 'all-linear'"
        )
    return [(layer, attention), (beyond[0], feed_forward)]


def _call(layer: Callable[..., Any], see: See, number: int, *args: Any, **kwargs: Any) -> Any:
    see(number, args[0] if args else kwargs["hidden_states"])
    return layer(*args, **kwargs)
