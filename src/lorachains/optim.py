"""One optimizer over a bank, a learning rate for each adapter.

Any torch optimizer whose step is elementwise and linear in its learning rate (AdamW, SGD, Adagrad, RMSprop, …) runs at
learning rate 1; each adapter's displacement is then scaled by the adapter's own rate: `p ← p + η_e (p' − p)`. That is
the optimizer's own step at rate `η_e` up to rounding (well under one unit in the last place of `p` for `η_e ≤ 1`),
weight decay included, and a schedule never touches the optimizer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorachains.errors import LorachainsError

FUSED = (torch.optim.Adam, torch.optim.AdamW)
"""Optimizers of which PyTorch makes a step of all tensors in one kernel of a GPU. (SGD's, with momentum, fails where
some have not stepped yet.)"""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Optim:
    """The optimizer recipe of a run.

    Args:
        lr: the peak learning rate, one for all adapters of a run or one for each.
        optimizer: makes a torch optimizer of parameters, at any learning rate (it is set to 1).
        schedule: "linear" to zero over its span (the paper's, App. A.1), "cosine" to zero, "constant".
        warmup: optimizer steps over which the rate rises linearly to its peak, the first one not at zero.

    Raises:
        LorachainsError: a rate that is not positive, an unknown schedule, a negative warm-up, or an optimizer whose
            step is not elementwise or not linear in its learning rate.
    """

    lr: float | Sequence[float]
    optimizer: OptimizerFactory
    schedule: str = "linear"
    warmup: int = 0

    def __post_init__(self) -> None:
        if any(not (isinstance(rate, int | float) and 0 < rate < math.inf) for rate in self.peak()):
            raise LorachainsError(f"optim.lr is {self.lr!r}: give a finite learning rate above 0")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise LorachainsError(f"optim.schedule is {self.schedule!r}: choose linear, cosine or constant")
        if type(self.warmup) is not int or self.warmup < 0:
            raise LorachainsError(f"optim.warmup is {self.warmup!r}: give a number of optimizer steps, 0 or more")
        if self.settings not in _ELEMENTWISE:
            _check_elementwise(self.optimizer)
            _ELEMENTWISE.append(self.settings)
        if "lr" in self.settings[1]:
            raise LorachainsError(
                f"optim.optimizer.lr is {self.settings[1]['lr']!r}, which counts nowhere: set optim.lr"
            )

    def peak(self) -> list[float]:
        """The peak rates as a list, of one item if all adapters share it."""
        return list(self.lr) if isinstance(self.lr, Sequence) else [self.lr]

    @property
    def settings(self) -> tuple[Any, dict[str, Any]]:
        """The optimizer's class and what it is given; recipes with equal ones can step as one tensor."""
        if isinstance(self.optimizer, partial):
            return self.optimizer.func, self.optimizer.keywords
        return self.optimizer, {}

    def factor(self, step: int, span: int, warmup: int | None = None) -> float:
        """The share of the peak rate for the optimizer step after `step` steps of a schedule `span` steps long.

        Args:
            warmup: in place of the recipe's own.
        """
        warmup = self.warmup if warmup is None else warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = max(0.0, (span - step) / max(1, span - warmup))
        match self.schedule:
            case "linear":
                return left
            case "cosine":
                return 0.5 * (1 - math.cos(math.pi * left))
            case _:
                return 1.0


_ELEMENTWISE: list[tuple[Any, dict[str, Any]]] = []
"""What was tried: the jobs of a grid mostly have the same."""


def check_rate(key: str, value: object) -> None:
    """Raises `LorachainsError` where the config value is no learning rate."""
    if not isinstance(value, int | float) or value is True or not 0 < value < math.inf:
        raise LorachainsError(f"{key} is {value!r}: give a learning rate above 0, or null")


def alike(recipes: Sequence[Optim]) -> list[int]:
    """The lengths of the longest stretches of recipes whose optimizers have the same settings."""
    return [len(list(stretch)) for _, stretch in groupby(recipe.settings for recipe in recipes)]


def build(recipes: Sequence[Optim], slices: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer at learning rate 1.

    Args:
        recipes: one for each adapter, of one class of optimizer.
        slices: the adapters' parameters, in tensors of adapters with `alike` recipes.

    Raises:
        LorachainsError: the recipes are of different classes of optimizers.
    """
    first = accumulate((len(rows) for rows in slices[:-1]), initial=0)
    settings = [recipes[i].settings for i in first]
    if len({kind for kind, _ in settings}) > 1:
        raise LorachainsError("optim.optimizer differs in its class between adapters of one bank: train them apart")
    alikes = groupby(zip(slices, settings, strict=True), lambda pair: pair[1])
    groups = [{"params": [rows for rows, _ in pairs], **given} for (_, given), pairs in alikes]
    kind, given = settings[0]
    one_kernel = kind in FUSED and all(rows.is_cuda for rows in slices) and not {"fused", "foreach"} & given.keys()
    optimizer: torch.optim.Optimizer = kind(groups, **given, **({"fused": True} if one_kernel else {}))
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    return optimizer


def _check_elementwise(factory: OptimizerFactory) -> None:
    """Raises a LorachainsError unless one adapter's step is its own, and half as long at half the rate."""

    def step(rate: float, other: float) -> Tensor:
        parameter = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        parameter.grad = torch.tensor([[0.1, -0.2, 0.3], [0.4 * other, 0.5, -0.6 * other]], dtype=torch.float64)
        optimizer = factory([parameter])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return parameter.detach()[0] - 1

    try:
        whole, half, beside_another = step(1.0, 1.0), step(0.5, 1.0), step(1.0, 7.0)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LorachainsError(f"optim.optimizer can't make a plain step ({error}): choose another") from error
    if not (torch.allclose(whole, 2 * half, rtol=1e-5) and torch.allclose(whole, beside_another, rtol=1e-5)):
        raise LorachainsError(
            "optim.optimizer does not step each element by itself in proportion to its learning rate, so that adapters "
            "can't have rates of their own: choose one as AdamW, SGD, Adagrad or RMSprop"
        )


class AdapterRates:
    """Scales each adapter's step of an optimizer by the adapter's own learning rate.

    Args:
        optimizer: at learning rate 1, over tensors with adapters along their first dimension, in order.
        rates: `(experts,)`, the learning rates of the next step; assign new ones before each step.
        tensors: gives tensors of which the optimizer's are parts, in the same order: the fewer, the faster. By default
            they are the optimizer's.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rates: Float[Tensor, " experts"],
        tensors: Callable[[], Sequence[Tensor]] | None = None,
    ):  # fmt: skip
        self.rates = rates
        self._tensors = tensors or (lambda: [p for group in optimizer.param_groups for p in group["params"]])
        self._before: list[tuple[Tensor, Tensor]] = []
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._scale)

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        self._before = [(tensor, tensor.clone()) for tensor in self._tensors()]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        parts = self.rates.split([len(before) for _, before in self._before])
        for (tensor, before), rates in zip(self._before, parts, strict=True):
            tensor.copy_(torch.lerp(before, tensor, rates.to(tensor.dtype).unsqueeze(1)))
        self._before = []


def forget(optimizer: torch.optim.Optimizer, fresh: torch.optim.Optimizer) -> None:
    """Takes over the state of a fresh optimizer over the same parameters: nothing is left of the steps done.

    That is COLA's reset of "all of the optimizer states" (§3.2), Adam's step count and Adagrad's initial sums included,
    for any torch optimizer and also where the parameters have changed their shape.
    """
    optimizer.load_state_dict(fresh.state_dict())


@torch.no_grad()
def clip_per_adapter(slices: Sequence[nn.Parameter], max_norm: float) -> Float[Tensor, " experts"]:
    """Scales each adapter's gradient to a norm of at most `max_norm`, in place, whatever the other adapters' are.

    Args:
        slices: `(adapters, parameters)` each.

    Returns:
        Each adapter's gradient norm before clipping; 0 without a gradient.
    """
    norms = []
    for rows in slices:
        if rows.grad is None:
            norms.append(rows.new_zeros(len(rows)))
            continue
        norms.append(rows.grad.norm(dim=1))
        rows.grad.mul_((max_norm / (norms[-1] + 1e-6)).clamp(max=1.0).unsqueeze(1))  # 1e-6 as in clip_grad_norm_
    return torch.cat(norms)
