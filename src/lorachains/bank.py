"""The LoRA bank: E adapters, stacked, over one frozen linear layer, and the ledger of links already tied.

For a row served by adapter e the layer computes (LoRA, Hu et al. 2021; COLA §3.2)

    y = W x + Σ_{i < m} s_i B_i A_i x + s B A x

where links 1…m-1 are in the ledger and the last term is the live link. `B A x` runs in the precision of `x`; the
factors themselves are kept in float32 (float64 over a float64 base), as autocast does it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lorachains.errors import LorachainsError
from lorachains.routing import Routing, lora_delta, routed_bias


class LoraBank(nn.Module):
    """Wraps a linear layer with E stacked adapters.

    Attributes:
        lora_A: `(experts, rank, in_features)`, the live link's down-projections.
        lora_B: `(experts, out_features, rank)`, its up-projections.
        lora_bias: `(experts, out_features)`, or `None` without `lora_bias`.
        scaling: `(experts, 1)`, the live link's `alpha / r` (`alpha / √r` with rank-stabilised LoRA).
        ledger_A, ledger_B, ledger_scale: the tied links side by side along the rank, `(experts, Σ rank, …)`, and room
            for more, which is zero (`reserve`).
        tied: how many ranks of the ledger are taken.
        ledger_bias: `(experts, links, out_features)`, the tied links' biases times their scaling, or `None`.
        merged: whether tied links go into the base weight (and the ledger is only a record of them).
        served: while texts are generated, adds each row's links to the base's output: `served(x, y)`. It stands in for
            the route.

    Raises:
        LorachainsError: the base is no linear layer.
    """

    base_layer: Any
    scaling: Tensor
    ledger_A: Tensor
    ledger_B: Tensor
    ledger_scale: Tensor
    ledger_bias: Tensor | None
    served: Callable[[Tensor, Tensor], Tensor] | None

    def __init__(self, base_layer: nn.Module, experts: int, routing: Routing, dropout: float = 0.0, bias: bool = False):
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = linear_shape(base_layer)
        self.routing = routing
        self.merged, self.tied = False, 0
        self.served = None
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        some: Tensor = next(chain(base_layer.parameters(), base_layer.buffers()))
        dtype = torch.float64 if some.dtype == torch.float64 else torch.float32
        empty = torch.empty(experts, 0, self.in_features, dtype=dtype, device=some.device)
        self.lora_A = nn.Parameter(empty)
        self.lora_B = nn.Parameter(empty.new_empty(experts, self.out_features, 0))
        self.lora_bias = nn.Parameter(empty.new_zeros(experts, self.out_features)) if bias else None
        self.register_buffer("scaling", empty.new_ones(experts, 1))
        self.register_buffer("ledger_A", empty.clone())
        self.register_buffer("ledger_B", empty.new_empty(experts, self.out_features, 0))
        self.register_buffer("ledger_scale", empty.new_empty(experts, 0))
        self.register_buffer("ledger_bias", empty.new_empty(experts, 0, self.out_features) if bias else None)
        self.train(base_layer.training)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """The base layer's output plus each row's links, `(rows, seq, …)` or `(rows · seq, …)`.

        Raises:
            LorachainsError: several adapters, and no route that says which one serves a row.
        """
        if self.served is not None:
            return self.served(x, self.base_layer(x))
        route = self.routing.route
        if route is None and len(self.lora_A) > 1:
            raise LorachainsError(
                f"a bank of {len(self.lora_A)} adapters needs a route: set `chain.route` before the call"
            )
        y = self.base_layer(x)
        ledger = not self.merged and self.ledger_A.shape[1] > 0
        apart = ledger and self.training and isinstance(self.dropout, nn.Dropout)  # dropout is for the live link only
        if apart:
            y = y + lora_delta(x, self.ledger_A, self.ledger_B, self.ledger_scale, route)
        y = y + lora_delta(self.dropout(x), *self._factors(ledger and not apart), route)
        if self.lora_bias is not None and self.ledger_bias is not None:
            bias = self.scaling * self.lora_bias
            y = y + routed_bias(bias + self.ledger_bias.sum(1) if ledger else bias, x, route)
        return y

    def _factors(self, with_ledger: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`A`, `B` and each rank's scaling. All links in one product: a knot then changes no step of the arithmetic."""
        scale = self.scaling.expand(-1, self.lora_A.shape[1])
        if not with_ledger:
            return self.lora_A, self.lora_B, scale
        return (
            torch.cat([self.ledger_A, self.lora_A], dim=1),
            torch.cat([self.ledger_B, self.lora_B], dim=2),
            torch.cat([self.ledger_scale, scale], dim=1),
        )

    @torch.no_grad()
    def extend(self, a: Float[Tensor, "experts rank in_features"], scaling: Float[Tensor, " experts"]) -> None:
        """Begins a fresh link: `A` as given, `B` (and bias) zero. The parameters stay the same objects."""
        device, dtype = self.lora_A.device, self.lora_A.dtype
        self.lora_A.grad = self.lora_B.grad = None
        self.lora_A.data = a.to(device, dtype)
        self.lora_B.data = torch.zeros(len(a), self.out_features, a.shape[1], device=device, dtype=dtype)
        self.scaling.copy_(scaling.unsqueeze(1))
        if self.lora_bias is not None:
            self.lora_bias.grad = None
            self.lora_bias.zero_()

    @torch.no_grad()
    def reserve(self, rank: int) -> None:
        """Makes room in the ledger for `rank` ranks in all, so that a knot neither moves nor reshapes it."""
        if (more := rank - self.ledger_A.shape[1]) <= 0:
            return
        self.ledger_A = F.pad(self.ledger_A, (0, 0, 0, more))
        self.ledger_B, self.ledger_scale = F.pad(self.ledger_B, (0, more)), F.pad(self.ledger_scale, (0, more))

    @torch.no_grad()
    def record(self) -> None:
        """Appends the live link to the ledger. The caller extends (or merges, then extends) right after."""
        rank = self.lora_A.shape[1]
        self.reserve(self.tied + rank)
        room = slice(self.tied, self.tied + rank)
        self.ledger_A[:, room] = self.lora_A
        self.ledger_B[:, :, room] = self.lora_B
        self.ledger_scale[:, room] = self.scaling
        self.tied += rank
        if self.ledger_bias is not None and self.lora_bias is not None:
            self.ledger_bias = torch.cat([self.ledger_bias, (self.scaling * self.lora_bias).unsqueeze(1)], dim=1)

    @torch.no_grad()
    def truncate(self, links: int, rank: int, reserved: int) -> None:
        """Keeps the ledger's first `links` links, which have `rank` ranks in all, and room for `reserved`."""
        kept = self.own_tensors()
        self.tied = rank
        self.ledger_A, self.ledger_B = kept["ledger_A"][:, :rank].clone(), kept["ledger_B"][:, :, :rank].clone()
        self.ledger_scale = kept["ledger_scale"][:, :rank].clone()
        self.reserve(reserved)
        if self.ledger_bias is not None:
            self.ledger_bias = self.ledger_bias[:, :links].clone()

    def own_tensors(self) -> dict[str, Tensor]:
        """What was trained, and the ledger without its empty room; nothing of the base."""
        own = {name: tensor.detach() for name in FIXED_SIZES if (tensor := getattr(self, name)) is not None}
        tied = {
            "ledger_A": own["ledger_A"][:, : self.tied],
            "ledger_B": own["ledger_B"][:, :, : self.tied],
            "ledger_scale": own["ledger_scale"][:, : self.tied],
        }
        return own | tied

    def take(self, name: str, given: Tensor) -> None:
        """Puts a saved tensor in place.

        Raises:
            LorachainsError: it differs in another size than a rank's or the ledger's.
        """
        mine = getattr(self, name)
        if given.dim() != mine.dim() or any(given.shape[d] != mine.shape[d] for d in FIXED_SIZES[name]):
            raise LorachainsError(
                f"the checkpoint's {name} has the shape {tuple(given.shape)}, this run's {tuple(mine.shape)}: "
                "it is of another model"
            )
        value = given.to(mine.device, mine.dtype, copy=True)
        if isinstance(mine, nn.Parameter):
            mine.data = value
        else:
            setattr(self, name, value)
            self.tied = self.ledger_A.shape[1]


def _nothing_added(x: Tensor, y: Tensor) -> Tensor:
    return y


@contextmanager
def bare(banks: Iterable[LoraBank]) -> Iterator[None]:
    """Within, the banks add nothing to their base layers."""
    before = {bank: bank.served for bank in banks}
    for bank in before:
        bank.served = _nothing_added
    try:
        yield
    finally:
        for bank, served in before.items():
            bank.served = served


FIXED_SIZES = {
    "lora_A": (0, 2), "lora_B": (0, 1), "lora_bias": (0, 1), "scaling": (0, 1),
    "ledger_A": (0, 2), "ledger_B": (0, 1), "ledger_scale": (0,), "ledger_bias": (0, 2),
}  # fmt: skip
"""A bank's own tensors, and which of their dimensions are neither a rank nor a number of links."""


def linear_shape(layer: Any) -> tuple[int, int]:
    """`(in_features, out_features)` of a linear layer: `nn.Linear`, GPT-2's `Conv1D`, or a quantised one.

    Raises:
        LorachainsError: the layer has no such features.
    """
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return int(layer.in_features), int(layer.out_features)
    raise LorachainsError(
        f"adapter.target_modules matches a {type(layer).__name__}, which is no linear layer: name linear layers only"
    )


def draw_a(
    init: bool | str, rank: int, in_features: int, generator: torch.Generator
) -> Float[Tensor, "rank in_features"]:
    """A fresh `A` as PEFT draws it: `"gaussian"` with standard deviation `1 / rank` (the paper's choice of
    distribution, §3.2), or `True` for the uniform law of `nn.Linear` (the original LoRA code's)."""
    a = torch.empty(rank, in_features)
    if init == "gaussian":
        return nn.init.normal_(a, std=1 / rank, generator=generator)
    return nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
