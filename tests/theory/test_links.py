"""COLA proper: the steps written out by hand, knots that move nothing, and what rank can and can't reach."""

import pytest
import torch

from lorachains.bank import draw_a
from lorachains.errors import LorachainsError
from lorachains.theory import ChainTrace, gap, train_chains
from tests.theory.small import KINDS, SEEDS, small


def trained(kind: str, links: int, *, rank: int = 1, steps: int = 40, rate: float = 0.1, every: int = 1) -> ChainTrace:
    rates = torch.full((len(SEEDS),), rate, dtype=torch.float64)
    return train_chains(small(kind), rank=rank, links=links, rates=rates, steps=steps, batch=4, every=every)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_algorithm_1_written_out(kind: str) -> None:
    """`∇_A = Bᵀ∇_W`, `∇_B = ∇_W Aᵀ`; after half of the steps BA joins W, A is drawn afresh and B is zero."""
    problem = small(kind, seeds=[3])
    batches, frozen = problem.minibatches(4), problem.zeros()[0]
    links = [draw_a("gaussian", 2, 6, torch.Generator().manual_seed(3 * 1_000_003 + i)).double() for i in (0, 1)]
    a, b, losses = links[0], torch.zeros(problem.rows, 2, dtype=torch.float64), []
    for step in range(7):
        if step == 3:
            frozen, a, b = frozen + b @ a, links[1], torch.zeros_like(b)
        losses.append(problem.loss((frozen + b @ a).unsqueeze(0)).item())
        if step < 6:
            g = problem.gradient((frozen + b @ a).unsqueeze(0), next(batches))[0]
            a, b = a - 0.2 * b.T @ g, b - 0.2 * g @ a.T
    rates = torch.tensor([0.2], dtype=torch.float64)
    trace = train_chains(problem, rank=2, links=2, rates=rates, steps=6, batch=4, every=1)
    assert trace.steps == list(range(7))
    assert trace.losses[0].tolist() == pytest.approx(losses, rel=1e-12)
    last = (frozen + b @ a).unsqueeze(0)
    assert trace.gaps[0, -1].item() == pytest.approx(gap(last, problem.gradient(last), problem.radius).item())
    assert trace.trace_norms[0, -1].item() == pytest.approx(torch.linalg.svdvals(last).sum().item())
    assert trace.test_losses[0, -1].item() == pytest.approx(problem.test_loss(last).item())


@pytest.mark.parametrize("kind", KINDS)
def test_until_the_first_knot_cola_is_lora(kind: str) -> None:
    lora, cola = trained(kind, 1), trained(kind, 4)
    torch.testing.assert_close(cola.losses[:, :11], lora.losses[:, :11])  # the knot itself moves nothing
    assert not torch.allclose(cola.losses[:, 12], lora.losses[:, 12])


def test_rank_limits_lora_and_not_the_chain() -> None:
    """Rank 1 can't fit a teacher of rank 2, two links of it can: the loss of the best rank-1 fit lies between them."""
    problem = small("completion", observed=1.0, noise=0.0)
    singular = torch.linalg.svdvals(problem.teachers)  # type: ignore[attr-defined]
    best = singular[:, 1:].square().sum(1) / (2 * problem.samples)
    rates = torch.full((5,), 2.0, dtype=torch.float64)
    ends = [
        train_chains(problem, rank=1, links=links, rates=rates, steps=600, batch=None, every=600).losses[:, -1]
        for links in (1, 2)
    ]
    torch.testing.assert_close(ends[0], best, rtol=1e-3, atol=0)
    assert (ends[1] < best / 100).all()


def test_points_are_every_so_many_steps_and_the_last() -> None:
    full, thinned = trained("completion", 2), trained("completion", 2, every=15)
    assert thinned.steps == [0, 15, 30, 40]
    assert torch.equal(thinned.losses, full.losses[:, thinned.steps])


def test_a_diverged_run_is_infinite_and_alone() -> None:
    rates = torch.tensor([0.1, 1e3, 0.1, 0.1, 0.1], dtype=torch.float64)
    trace = train_chains(small("completion"), rank=1, links=2, rates=rates, steps=40, batch=4, every=40)
    alone = trained("completion", 2, every=40)
    assert trace.losses[1, -1] == torch.inf
    others = [0, 2, 3, 4]
    torch.testing.assert_close(trace.losses[others], alone.losses[others])
    torch.testing.assert_close(trace.gaps[others], alone.gaps[others])


def test_more_links_than_steps() -> None:
    with pytest.raises(LorachainsError, match="knot"):
        trained("completion", 9, steps=4)
