"""What is made of a chain's factors alone, against the updates multiplied out in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.exported import ExportedChain, Link
from lorachains.transfer import export
from tests.adapters import ARCH_AND_FIELDS, config, randomise
from tests.tiny import tiny_model

RANKS = (4, 2, 3)


def exported(arch: str = "llama", **fields: Any) -> ExportedChain:
    """A chain of three links of several ranks (and one scaling: alpha follows the rank), the last one live."""
    chain = Chain(tiny_model(arch, torch.float64), config(arch, r=RANKS[0], **fields))
    for link, rank in enumerate(RANKS[1:], 1):
        randomise(chain, link)
        chain.tie(10 * link)
        chain.extend(rank, alpha_over=RANKS[0])
    randomise(chain, len(RANKS))
    return export(chain, "some/base", "0123")


def updates(chain: ExportedChain) -> dict[str, Tensor]:
    return {name: chain.scale * f.b.double() @ f.a.double() for name, f in chain.layers.items()}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs) ** 0.5


@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
def test_the_links_add_up_to_the_chain(arch: str, fields: dict[str, Any]) -> None:
    chain = exported(arch, **fields)
    assert chain.links == (Link(4, 10), Link(2, 20), Link(3, None))
    parts = [chain.first(links) for links in range(4)]
    assert [part.rank for part in parts] == [4, 4, 6, 9]
    assert distance(updates(parts[3]), updates(chain)) == 0
    nothing = updates(parts[0])
    assert all(not update.any() for update in nothing.values())
    norms = [distance(updates(parts[i + 1]), updates(parts[i])) for i in range(3)]
    assert chain.norms() == pytest.approx(norms, rel=1e-10)
    assert chain.norm == pytest.approx(distance(updates(chain), nothing), rel=1e-10)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("rank", [1, 4, 8, 9, 16])
def test_the_compressed_chain_is_the_truncated_svd(arch: str, rank: int) -> None:
    chain = exported(arch)
    adapter, errors = chain.compressed(rank)
    assert (adapter.rank, adapter.links) == (rank, (Link(rank, None),))
    tails: list[Tensor] = []
    whole: list[Tensor] = []
    for name, update in updates(chain).items():
        u, s, vh = torch.linalg.svd(update)
        nearest = u[:, :rank] * s[:rank] @ vh[:rank] if rank < len(s) else update
        assert (updates(adapter)[name] - nearest).norm() < 1e-10 * s.norm()
        assert errors[name] == pytest.approx(float(s[rank:].norm() / s.norm()), abs=1e-12)
        tails, whole = [*tails, s[rank:]], [*whole, s]
    assert errors[""] == pytest.approx(float(torch.cat(tails).norm() / torch.cat(whole).norm()), abs=1e-12)
    assert (errors[""] < 1e-12) == (rank >= 9)


def test_a_compressed_chain_keeps_its_biases_and_nothing_stays_nothing() -> None:
    chain = exported("opt", lora_bias=True, init_lora_weights=True)
    for name, factors in chain.compressed(2)[0].layers.items():
        bias = chain.layers[name].bias
        assert factors.bias is not None
        assert bias is not None
        assert torch.allclose(factors.bias[0], chain.scale * bias.sum(0))
    adapter, errors = chain.first(0).compressed(2)
    assert set(errors.values()) == {0.0}
    assert adapter.norm == 0


@pytest.mark.parametrize("links", [-1, 4, 1.5, None, True])
def test_links_that_are_not_there(links: Any) -> None:
    with pytest.raises(LorachainsError, match=r"links is .*, but the chain has 3: choose 0…3"):
        exported().first(links)


@pytest.mark.parametrize("rank", [0, -1, None, 2.0])
def test_no_rank(rank: Any) -> None:
    with pytest.raises(LorachainsError, match=r"rank is .*: give the new adapter's rank, at least 1"):
        exported().compressed(rank)
