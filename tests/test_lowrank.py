"""Against the singular values of the product, multiplied out in float64."""

import pytest
import torch
from torch import Tensor

from lorachains.lowrank import best_approximation, norm


def factors(out: int, rank: int, features: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(out + rank)
    b, a = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((out, rank), (rank, features)))
    return b, a


SIZES = [(12, 6, 9), (5, 8, 30), (30, 8, 5), (7, 1, 7)]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_norm_is_the_products(sizes: tuple[int, int, int]) -> None:
    b, a = factors(*sizes)
    assert norm(b, a) == pytest.approx(float((b @ a).norm()), rel=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rank", [1, 3, 5, 8, 11])
def test_nothing_of_that_rank_is_nearer(sizes: tuple[int, int, int], rank: int) -> None:
    b, a = factors(*sizes)
    new_b, new_a, distance = best_approximation(b, a, rank)
    assert (new_b.shape, new_a.shape) == ((sizes[0], rank), (rank, sizes[2]))
    tail = torch.linalg.svdvals(b @ a)[rank:].norm()
    assert float((b @ a - new_b @ new_a).norm()) == pytest.approx(float(tail), abs=1e-12)
    assert distance == pytest.approx(float(tail), abs=1e-12)


def test_a_product_of_lower_rank_than_its_factors_is_found_exactly() -> None:
    b, a = factors(12, 3, 9, torch.float32)
    twice_b, twice_a = torch.cat([b, b], 1), torch.cat([a, a])
    new_b, new_a, distance = best_approximation(twice_b, twice_a, 3)
    assert new_b.dtype == torch.float32
    assert torch.allclose(new_b @ new_a, 2 * b @ a, atol=1e-5)
    assert distance < 1e-12 * norm(twice_b, twice_a)
    assert best_approximation(0 * b, a, 2)[2] == norm(0 * b, a) == 0
