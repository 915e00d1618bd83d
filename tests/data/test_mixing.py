import random
from collections import Counter
from itertools import chain
from math import inf

import pytest

from lorachains.data.batching import EpochBatches, epoch_batches
from lorachains.data.mixing import Mixture
from lorachains.errors import LorachainsError

_TASKS = [0] * 90 + [1] * 9 + [2]
_LENGTHS = random.Random(0).choices(range(10, 99), k=100)
_MIXTURES = [Mixture(), Mixture(mix="batches"), Mixture(4.0), Mixture(inf, "batches"), Mixture(0.5, "batches")]


def _epoch(mixture: Mixture, seed: int = 0, epoch: int = 0, by_length: bool = False) -> list[list[int]]:
    return epoch_batches(_LENGTHS, 8, seed, epoch, by_length, _TASKS, mixture)


def test_tasks_alike_are_no_mixture() -> None:
    assert _epoch(Mixture()) == epoch_batches(_LENGTHS, 8, 0, 0)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 2.0, 5.0, inf])
def test_quotas_are_powers_of_the_sizes(temperature: float) -> None:
    counts = [900, 90, 10]
    quotas = Mixture(temperature).quotas(counts)
    weights = [n ** (1 / temperature) for n in counts]
    assert sum(quotas) == 1000
    assert min(quotas) >= 1
    expected = [max(1.0, 1000 * weight / sum(weights)) for weight in weights]
    assert quotas == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("mixture", _MIXTURES, ids=str)
@pytest.mark.parametrize("by_length", [False, True])
def test_an_epoch_has_its_quotas_evenly(mixture: Mixture, by_length: bool) -> None:
    drawn = Counter(chain.from_iterable(_epoch(mixture, by_length=by_length)))
    quotas = mixture.quotas([90, 9, 1])
    of_task = Counter(chain.from_iterable([_TASKS[row]] * times for row, times in drawn.items()))
    assert [of_task[task] for task in range(3)] == quotas
    for task, quota in enumerate(quotas):
        times = [drawn[row] for row in range(100) if _TASKS[row] == task]
        assert max(times) - min(times) <= 1  # none a second time before all were there once
        assert sum(times) == quota


@pytest.mark.parametrize("mixture", _MIXTURES, ids=str)
def test_batches_of_one_task_or_of_any(mixture: Mixture) -> None:
    batches = _epoch(mixture)
    pure = [len({_TASKS[row] for row in batch}) == 1 for batch in batches]
    assert all(pure) == (mixture.mix == "batches")
    if mixture.mix == "batches":
        order = [_TASKS[batch[0]] for batch in batches]
        assert order != sorted(order)
    assert max(map(len, batches)) == 8


@pytest.mark.parametrize("mixture", _MIXTURES, ids=str)
def test_order_follows_seed_and_epoch_and_can_be_resumed(mixture: Mixture) -> None:
    orders = [_epoch(mixture, seed, epoch) for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]

    def batches() -> EpochBatches:
        return EpochBatches(_LENGTHS, 8, 3, tasks=_TASKS, mixture=mixture)

    whole = batches()
    assert len(whole) == len(_epoch(mixture))
    steps = iter(whole)
    next(steps), next(steps)
    state = whole.state_dict()
    rest = list(steps)
    resumed = batches()
    resumed.load_state_dict(state)
    assert list(resumed) == rest


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"temperature": 0}, "data.temperature is 0"),
        ({"temperature": "hot"}, "data.temperature is 'hot'"),
        ({"mix": "tasks"}, "data.mix is 'tasks': choose rows or batches"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(LorachainsError, match=fault):
        Mixture(**settings)  # type: ignore[arg-type]
