"""Which adapter serves which row: the routes of a bank and the batched LoRA product under each of them.

Three routes, one meaning: ``delta = scaling · B A x`` with the adapter(s) that the route names. There is no loop over
adapters in any of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor
from torch.nn import functional as F

from lorachains.kernels import usable
from lorachains.stream_lora import stream_lora

JOINT = 256
"""So many ranks of all adapters are at most computed as one."""


@dataclass(frozen=True)
class HardRoute:
    """One adapter for each row of the batch, or for each of equally long pieces of a stream of tokens.

    Args:
        index: `(rows,)`, the adapter of each row, in `[0, experts)`.
        ends: `(experts,)`, where the tokens of each adapter end, if they stand side by side in a stream.
        active: `(tokens,)`, row by row, whether a token is behind its adapter's invocation: the others get none
            (Activated LoRA, Greenewald et al. 2025, arXiv 2504.12397). `None` if all are.
        joint: whether the adapters are of one mixture, and fail together. Few ranks are then computed as one on a GPU,
            where tokens don't stand adapter by adapter, and what isn't a row's own is masked. So a number that isn't
            finite, in one adapter, reaches others' rows.
    """

    index: Int[Tensor, " rows"]
    ends: Int32[Tensor, " experts"] | None = None
    active: Bool[Tensor, " tokens"] | None = None
    joint: bool = False


@dataclass(frozen=True)
class SoftRoute:
    """A weighted sum of all adapters for each row or each token.

    Args:
        weights: `(rows, experts)` or `(rows, seq, experts)`. Not normalised here.
    """

    weights: Float[Tensor, "rows *seq experts"]


Route = HardRoute | SoftRoute | None
"""`None`: the bank has one adapter, and it serves every row (plain LoRA)."""


@dataclass
class Routing:
    """Holds the route of the forward pass under way; shared by all banks that follow the same route.

    The shared one stays set until the next one is, because activation checkpointing runs a layer's forward again in the
    backward; blocks' own are forgotten after their pass (`blocks`).
    """

    route: Route = None


def lora_delta(
    x: Float[Tensor, "*batch in_features"],
    a: Float[Tensor, "experts rank in_features"],
    b: Float[Tensor, "experts out_features rank"],
    scale: Float[Tensor, "experts rank"],
    route: Route,
) -> Float[Tensor, "*batch out_features"]:
    """`scale · B A x` of each row's adapter(s), in the precision of `x`.

    `scale` is given for each rank, since links of different scaling stand side by side. `x` may come flattened to
    `(rows · seq, in_features)`.
    """
    a, b = a.to(x.dtype), (b * scale.unsqueeze(1)).to(x.dtype)  # scaled before it is rounded to bfloat16
    match route:
        case None:
            return F.linear(F.linear(x, a.squeeze(0)), b.squeeze(0))
        case HardRoute(index, ends, active) if ends is not None and usable(x):
            return stream_lora(x.reshape(-1, x.shape[-1]), a, b, index, ends, active).reshape(*x.shape[:-1], -1)
        case HardRoute(index, _, active, True) if _as_one(x, a):
            hidden = F.linear(_by_row(x, len(index)), a.flatten(0, 1))
            owner = torch.arange(hidden.shape[-1], device=index.device) // a.shape[1]  # of each rank
            hidden = _activated(torch.where(index.view(-1, 1, 1) == owner, hidden, 0), active)
            return F.linear(hidden, _side_by_side(b)).reshape(*x.shape[:-1], -1)
        case HardRoute(index, active=active):
            hidden = _activated(torch.bmm(_by_row(x, len(index)), a[index].mT), active)
            return torch.bmm(hidden, b[index].mT).reshape(*x.shape[:-1], -1)
        case SoftRoute(weights):
            rows, rank = len(weights), a.shape[1]
            per_rank = weights.repeat_interleave(rank, dim=-1).reshape(rows, -1, len(a) * rank)
            hidden = F.linear(_by_row(x, rows), a.flatten(0, 1)) * per_rank.to(x.dtype)
            return F.linear(hidden, _side_by_side(b)).reshape(*x.shape[:-1], -1)


def routed_bias(
    bias: Float[Tensor, "experts out_features"], x: Float[Tensor, "*batch in_features"], route: Route
) -> Float[Tensor, "*batch out_features"]:
    """The bias of each row's adapter(s), broadcast over the sequence to the batch shape of `x`."""
    bias = bias.to(x.dtype)
    match route:
        case None:
            return bias[0].expand(*x.shape[:-1], -1)
        case HardRoute(index):
            rows, by_row = len(index), bias[index].unsqueeze(1)
        case SoftRoute(weights):
            rows, by_row = len(weights), (weights.to(x.dtype) @ bias).reshape(len(weights), -1, bias.shape[-1])
    by_token = by_row.expand(rows, x.shape[:-1].numel() // rows, -1)
    return _activated(by_token, route.active if isinstance(route, HardRoute) else None).reshape(*x.shape[:-1], -1)


def _activated(values: Float[Tensor, "*batch features"], active: Bool[Tensor, " tokens"] | None) -> Tensor:
    """Zero where no adapter is active."""
    return values if active is None else torch.where(active.view(*values.shape[:-1], 1), values, 0)


def _as_one(x: Tensor, a: Tensor) -> bool:
    """Whether a product of all adapters' ranks costs less than keeping them apart: on a GPU, which has the time."""
    return x.is_cuda and len(a) * a.shape[1] <= JOINT


def _side_by_side(b: Float[Tensor, "experts out_features rank"]) -> Float[Tensor, "out_features ranks"]:
    return b.transpose(0, 1).flatten(1)


def _by_row(x: Tensor, rows: int) -> Tensor:
    return x.reshape(rows, -1, x.shape[-1])
