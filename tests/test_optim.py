"""Each adapter's step is the plain optimizer's at its own rate; a knot leaves nothing of the steps before it."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lorachains.errors import LorachainsError
from lorachains.optim import AdapterRates, Optim, alike, build, clip_per_adapter, forget

FACTORIES: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.1),
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adagrad": partial(torch.optim.Adagrad, initial_accumulator_value=0.1),
    "rmsprop": torch.optim.RMSprop,
    "nadam": torch.optim.NAdam,
}
RATES = [1e-3, 2e-2, 3e-1]


def slices(*sizes: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Three adapters of 20 parameters each, in tensors of so many adapters."""
    rows = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return [nn.Parameter(part.clone()) for part in rows.split(sizes or (3,))]


def rows_of(parts: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([part.detach() for part in parts])


def loss(rows: torch.Tensor, step: int) -> torch.Tensor:
    """The sum of all adapters' own, another one at each step."""
    return ((rows - 0.1 * step).cos() * torch.linspace(0.5, 2, rows.shape[1], dtype=rows.dtype)).sum()


def train(parts: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        torch.stack([loss(part, step) for part in parts]).sum().backward()
        optimizer.step()


DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["float64", "float32"]
)


@pytest.mark.parametrize("name", FACTORIES)
@DTYPES
def test_each_adapter_steps_as_alone_at_its_own_rate(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """20 steps against torch's optimizer on that adapter alone; parameters and rates of about 1."""
    together = slices(dtype=dtype)
    optimizer = build([Optim(rate, FACTORIES[name]) for rate in RATES], together)
    AdapterRates(optimizer, torch.tensor(RATES, dtype=dtype))
    train(together, optimizer, range(20))
    for expert, rate in enumerate(RATES):
        alone = [slices(1, 1, 1, dtype=dtype)[expert]]
        train(alone, FACTORIES[name](alone, lr=rate), range(20))
        assert torch.allclose(rows_of(together)[expert], rows_of(alone)[0], rtol=0, atol=tolerance * 10)


@DTYPES
def test_each_slice_has_settings_of_its_own(dtype: torch.dtype, tolerance: float) -> None:
    """The first two adapters share a weight decay, the third has another one, and no momentum."""
    kinds = [
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.5),
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.5),
        partial(torch.optim.SGD, momentum=0.0, weight_decay=0.0),
    ]
    recipes = [Optim(rate, kind) for rate, kind in zip(RATES, kinds, strict=True)]
    assert alike(recipes) == [2, 1]
    together = slices(*alike(recipes), dtype=dtype)
    optimizer = build(recipes, together)
    AdapterRates(optimizer, torch.tensor(RATES, dtype=dtype))
    train(together, optimizer, range(20))
    for expert, (rate, kind) in enumerate(zip(RATES, kinds, strict=True)):
        alone = [slices(1, 1, 1, dtype=dtype)[expert]]
        train(alone, kind(alone, lr=rate), range(20))
        assert torch.allclose(rows_of(together)[expert], rows_of(alone)[0], rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("name", FACTORIES)
def test_slices_of_one_tensor_are_scaled_at_once(name: str) -> None:
    """As one by one, to the bit; an adapter without a gradient stays as it is. Equal settings are one group."""
    found = []
    for at_once in (False, True):
        whole = rows_of(slices(1, 1, 1))
        parts = [nn.Parameter(whole[row : row + 1]) for row in range(3)]
        optimizer = build([Optim(rate, FACTORIES[name]) for rate in RATES], parts)
        assert len(optimizer.param_groups) == 1
        AdapterRates(optimizer, torch.tensor(RATES, dtype=whole.dtype), partial(list, [whole] if at_once else parts))
        before = whole.clone()
        for step in range(3):
            optimizer.zero_grad()
            torch.stack([loss(part, step) for part in parts if part is not parts[1]]).sum().backward()
            optimizer.step()
        assert torch.equal(whole[1], before[1])
        assert not torch.isclose(whole[::2], before[::2]).all()
        found.append(whole)
    assert torch.equal(*found)


def test_recipes_are_alike_whatever_their_rates() -> None:
    one, two = partial(torch.optim.AdamW, weight_decay=0.1), partial(torch.optim.AdamW, weight_decay=0.2)
    recipes = [Optim(1e-3, one), Optim(2e-3, one, "cosine"), Optim(1e-3, two), Optim(1e-3, one, warmup=3)]
    assert alike(recipes) == [2, 1, 1]
    assert alike(recipes[:1]) == [1]


def test_other_classes_of_optimizers_are_refused() -> None:
    recipes = [Optim(1e-3, torch.optim.AdamW), Optim(1e-3, torch.optim.SGD), Optim(1e-3, torch.optim.SGD)]
    with pytest.raises(LorachainsError, match=r"optim\.optimizer differs in its class"):
        build(recipes, slices(*alike(recipes)))


@pytest.mark.parametrize("name", FACTORIES)
def test_after_a_knot_the_optimizer_is_as_new(name: str) -> None:
    """Ten steps after the reset equal ten steps of a new optimizer; Adam's step count is gone with its moments."""
    recipes, first = [Optim(0.1, FACTORIES[name])] * 3, slices()
    optimizer = build(recipes, first)
    train(first, optimizer, range(10))
    second = copy.deepcopy(first)
    forget(optimizer, build(recipes, first))
    fresh = build(recipes, second)
    assert str(optimizer.state_dict()) == str(fresh.state_dict())
    train(first, optimizer, range(10, 20))
    train(second, fresh, range(10, 20))
    assert torch.equal(rows_of(first), rows_of(second))


@pytest.mark.parametrize("name", FACTORIES)
def test_the_reset_follows_a_change_of_rank(name: str) -> None:
    recipes, parts = [Optim(0.1, FACTORIES[name])] * 3, slices()
    optimizer = build(recipes, parts)
    AdapterRates(optimizer, torch.full((3,), 0.1, dtype=torch.float64))
    train(parts, optimizer, range(3))
    parts[0].data, parts[0].grad = slices()[0].data[:, :12], None
    forget(optimizer, build(recipes, parts))
    train(parts, optimizer, range(3))
    alone = [nn.Parameter(slices()[0].data[:, :12].clone())]
    train(alone, FACTORIES[name](alone, lr=0.1), range(3))
    assert torch.allclose(parts[0], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(3,), (1, 2)])
def test_clipping_one_adapter_leaves_the_others(sizes: tuple[int, ...]) -> None:
    """Against torch's clip on each adapter alone."""
    gradients = slices()[0].detach() * torch.tensor([[1e3], [1e-3], [1.0]], dtype=torch.float64)
    parts = slices(*sizes)
    for part, gradient in zip(parts, gradients.split(sizes), strict=True):
        part.grad = gradient.clone()
    norms = clip_per_adapter(parts, 1.0)
    clipped = torch.cat([part.grad for part in parts if part.grad is not None])
    for expert, gradient in enumerate(gradients):
        alone = nn.Parameter(torch.zeros(20, dtype=torch.float64))
        alone.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_([alone], 1.0)
        assert torch.allclose(norms[expert], norm)
        assert torch.allclose(clipped[expert], alone.grad, rtol=1e-12)


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
        ({"optimizer": partial(torch.optim.AdamW, lr=0.1)}, r"optim.optimizer.lr is 0.1, .*: set optim.lr"),
    ],
)
def test_bad_recipes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LorachainsError, match=message):
        Optim(**({"lr": 1e-3, "optimizer": torch.optim.AdamW} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", [torch.optim.Adafactor, torch.optim.LBFGS, partial(torch.optim.Muon, lr=1.0)])
def test_optimizers_that_mix_adapters_are_refused(factory: Any) -> None:
    with pytest.raises(LorachainsError, match=r"optim\.optimizer (does not step each element|can't make a plain step)"):
        Optim(1e-3, factory)
