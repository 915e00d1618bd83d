"""Each adapter's step is the plain optimizer's at its own rate; a knot leaves nothing of the steps before it."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lorachains.errors import LorachainsError
from lorachains.optim import AdapterRates, Optim, clip_per_adapter, forget

FACTORIES: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.1),
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adagrad": partial(torch.optim.Adagrad, initial_accumulator_value=0.1),
    "rmsprop": torch.optim.RMSprop,
    "nadam": torch.optim.NAdam,
}
RATES = [1e-3, 2e-2, 3e-1]


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 5), (3, 6, 4), (3, 6)]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def loss(rows: list[torch.Tensor], step: int) -> torch.Tensor:
    """Of one adapter: its tensors' own, and another at each step."""
    return torch.stack([((row - 0.1 * step).cos() * (i + 1)).sum() for i, row in enumerate(rows)]).sum()


def train(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        torch.stack([loss([p[e] for p in params], step) for e in range(len(params[0]))]).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["float64", "float32"]
)
def test_each_adapter_steps_as_alone_at_its_own_rate(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """20 steps against torch's optimizer on that adapter alone; parameters and rates of about 1."""
    together = parameters(dtype)
    optim = Optim(RATES, FACTORIES[name])
    optimizer = optim.build(together)
    AdapterRates(optimizer, torch.tensor(RATES, dtype=dtype))
    train(together, optimizer, range(20))
    for expert, rate in enumerate(RATES):
        alone = [nn.Parameter(p[expert : expert + 1].detach().clone()) for p in parameters(dtype)]
        train(alone, FACTORIES[name](alone, lr=rate), range(20))
        for ours, theirs in zip(together, alone, strict=True):
            assert torch.allclose(ours[expert], theirs[0], rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("name", FACTORIES)
def test_after_a_knot_the_optimizer_is_as_new(name: str) -> None:
    """Ten steps after the reset equal ten steps of a new optimizer; Adam's step count is gone with its moments."""
    first = parameters()
    optimizer = Optim(0.1, FACTORIES[name]).build(first)
    train(first, optimizer, range(10))
    second = copy.deepcopy(first)
    forget(optimizer, FACTORIES[name](first))
    fresh = Optim(0.1, FACTORIES[name]).build(second)
    assert str(optimizer.state_dict()) == str(fresh.state_dict())
    train(first, optimizer, range(10, 20))
    train(second, fresh, range(10, 20))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", FACTORIES)
def test_the_reset_follows_a_change_of_rank(name: str) -> None:
    params = parameters()
    optimizer = Optim(0.1, FACTORIES[name]).build(params)
    AdapterRates(optimizer, torch.full((3,), 0.1))
    train(params, optimizer, range(3))
    params[0].data, params[0].grad = torch.randn(3, 2, 5, dtype=torch.float64), None
    forget(optimizer, FACTORIES[name](params))
    train(params, optimizer, range(3))
    assert params[0].shape == (3, 2, 5)


def test_clipping_one_adapter_leaves_the_others() -> None:
    """Against torch's clip on each adapter alone."""
    params = parameters()
    train(params, torch.optim.SGD(params, lr=0.0), range(1))
    size = torch.tensor([1e3, 1e-3, 1.0], dtype=torch.float64)
    alone = [[nn.Parameter(p[e].detach().clone()) for p in params] for e in range(3)]
    for i, p in enumerate(params):
        p.grad = p.grad * size.view(-1, *[1] * (p.dim() - 1)) if p.grad is not None else None
        for e, rows in enumerate(alone):
            rows[i].grad = gradient(p)[e].clone()
    norms = clip_per_adapter(params, 1.0)
    for e, rows in enumerate(alone):
        norm = nn.utils.clip_grad_norm_(rows, 1.0)
        assert torch.allclose(norms[e], norm)
        for row, p in zip(rows, params, strict=True):
            assert torch.allclose(gradient(p)[e], gradient(row), rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("linear", lambda step: 1 - step / 10),
        ("constant", lambda step: 1.0),
        ("cosine", lambda step: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 10)).item())),
    ],
)
def test_schedules(schedule: str, reference: Callable[[int], float]) -> None:
    optim = Optim(1e-3, torch.optim.AdamW, schedule=schedule)
    assert [optim.factor(step, 10) for step in range(10)] == pytest.approx(
        [reference(step) for step in range(10)], abs=1e-6
    )


def test_the_linear_schedule_is_transformers_own() -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=17)
    for step in range(17):
        assert Optim(1.0, torch.optim.SGD).factor(step, 17) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warmup_rises_to_the_peak_and_never_stands_still() -> None:
    optim = Optim(1e-3, torch.optim.AdamW, schedule="constant", warmup=4)
    assert [optim.factor(step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "optim.lr is 0.0"),
        ({"lr": float("nan")}, "optim.lr is nan"),
        ({"schedule": "step"}, "optim.schedule is 'step'"),
        ({"warmup": -1}, "optim.warmup"),
    ],
)
def test_bad_recipes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LorachainsError, match=message):
        Optim(**({"lr": 1e-3, "optimizer": torch.optim.AdamW} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", [torch.optim.Adafactor, torch.optim.LBFGS, partial(torch.optim.Muon, lr=1.0)])
def test_optimizers_that_mix_adapters_are_refused(factory: Any) -> None:
    with pytest.raises(LorachainsError, match=r"optim\.optimizer (does not step each element|can't make a plain step)"):
        Optim(1e-3, factory)
