"""The rows of a study are means of the runs that they name, each at a learning rate chosen on other seeds."""

import copy
from functools import partial
from typing import Any

import pytest
import torch

from lorachains.errors import LorachainsError
from lorachains.theory import frank_wolfe, step_size, train_chains
from lorachains.theory.study import chain_rows, check_settings, frank_wolfe_rows
from tests.theory.small import small

MAKE = partial(small, "completion")
TRAINING = {"steps": 30, "batch": 4, "every": 10}


def test_frank_wolfe_rows() -> None:
    rows = frank_wolfe_rows(MAKE, [5, 6], [10, 20], [3, "T"], None)
    assert [(row["M"], row["batch"], row["T"]) for row in rows] == [
        (over, batch, steps) for over in ("ball", "start") for batch in (3, "T") for steps in (10, 20)
    ]
    problem, row = small("completion", seeds=[5, 6]), rows[-1]
    fall = problem.loss(problem.zeros())
    eta = step_size(fall, problem.smoothness, problem.diameter, 20)
    trace = frank_wolfe(problem, 20, eta, batch=20)
    assert row["average_gap"] == pytest.approx(trace.gaps.mean().item())
    assert row["average_slack"] == pytest.approx(trace.slacks.mean().item())
    short = problem.diameter * (fall * problem.smoothness / 20).sqrt()
    assert row["bound"] == pytest.approx(1.5 * short.mean().item())
    assert row["expected_slack"] == pytest.approx(16 * (problem.variance / 20).sqrt().mean().item())
    assert all(row["holds"] == 2 for row in rows)


def test_chain_rows() -> None:
    """The hopeless rates lose; what is reported is the seeds' own at the best, against the chain of one link."""
    rows = chain_rows(
        MAKE, [5, 6], ranks=[1, 2], links=[1, 3], rates=[1e-6, 0.5, 1e6], tuning_seeds=[100, 101], **TRAINING
    )
    assert [(row["rank"], row["links"], row["rate"]) for row in rows] == [
        (1, 1, 0.5), (1, 3, 0.5), (2, 1, 0.5), (2, 3, 0.5)
    ]  # fmt: skip
    rates = torch.full((2,), 0.5, dtype=torch.float64)
    for lora, cola in (rows[:2], rows[2:]):
        one, three = (
            train_chains(small("completion", seeds=[5, 6]), rank=lora["rank"], links=links, rates=rates, **TRAINING)
            for links in (1, 3)
        )
        assert cola["last_loss"] == pytest.approx(three.losses[:, -1].mean().item())
        assert cola["last_test_loss"] == pytest.approx(three.test_losses[:, -1].mean().item())
        assert cola["losses"] == pytest.approx(three.losses.mean(0).tolist(), rel=1e-4)
        assert cola["gaps"] == pytest.approx(three.gaps.mean(0).tolist(), rel=1e-4)
        assert cola["steps"] == [0, 10, 20, 30]
        assert cola["better"] == sum(three.losses[:, -1] < one.losses[:, -1])
        assert cola["better_test"] == sum(three.test_losses[:, -1] < one.test_losses[:, -1])
        assert lora["better"] == lora["better_test"] == 0


def test_the_rate_is_the_tuning_seeds_choice() -> None:
    """Of two rates that are as good on the whole, each data set has its own better one."""
    rates, chosen = [0.3, 0.7], set()
    for seed in range(100, 110):
        (row,) = chain_rows(MAKE, [5], ranks=[1], links=[1], rates=rates, tuning_seeds=[seed], **TRAINING)
        problem, both = small("completion", seeds=[seed, seed]), torch.tensor(rates, dtype=torch.float64)
        trace = train_chains(problem, rank=1, links=1, rates=both, **TRAINING)
        assert row["rate"] == rates[int(trace.losses[:, -1].argmin())]
        assert row["last_loss_std"] == 0
        chosen.add(row["rate"])
    assert len(chosen) == 2


def test_rates_that_all_diverge() -> None:
    with pytest.raises(LorachainsError, match=r"chains.rates is \[1000000.0\]: every one of them diverges"):
        chain_rows(MAKE, [5], ranks=[1], links=[1], rates=[1e6], tuning_seeds=[100], **TRAINING)


SETTINGS: dict[str, Any] = {
    "seeds": [0],
    "frank_wolfe": {"steps": [10], "batches": [16, "T"], "iterations": None},
    "chains": {
        "ranks": [1], "links": [1], "steps": 10, "batch": 4, "every": 5, "tuning_seeds": [100], "rates": [0.1],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "key", "value", "says"),
    [
        (None, "seeds", [], r"seeds is \[\]: give whole numbers of at least 0"),
        (None, "seeds", [0, 100], r"chains.tuning_seeds and seeds share \[100\]"),
        ("frank_wolfe", "steps", [0], "frank_wolfe.steps is 0: give whole numbers of at least 1"),
        ("frank_wolfe", "batches", ["all"], "frank_wolfe.batches is 'all': give whole numbers of at least 1 or T"),
        ("frank_wolfe", "iterations", 0, "frank_wolfe.iterations is 0: give whole numbers of at least 1 or null"),
        ("chains", "links", 3, "chains.links is 3: give whole numbers"),
        ("chains", "batch", 0.5, "chains.batch is 0.5"),
        ("chains", "rates", [0.1, 0], r"chains.rates is \[0.1, 0\]: give learning rates above 0"),
    ],
)
def test_bad_settings(group: str | None, key: str, value: Any, says: str) -> None:
    settings = copy.deepcopy(SETTINGS)
    check_settings(settings)
    (settings if group is None else settings[group])[key] = value
    with pytest.raises(LorachainsError, match=says):
        check_settings(settings)
