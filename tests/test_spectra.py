"""Links' norms, spectra and subspaces, against those of the updates multiplied out in float64."""

import math

import pytest
import torch
from torch import Tensor

from lorachains.bank import LoraBank
from lorachains.chain import Chain
from lorachains.spectra import LayerLink, effective_rank, factors, layer_links, norm, overlap, singular_values
from tests.adapters import config, randomise
from tests.tiny import tiny_model


def overlap_of(x: Tensor, y: Tensor, rounding: float = 1e-7) -> float:
    both = torch.cat([x, y], dim=1).double()
    return float(overlap(both.mT @ both, x.shape[1], torch.tensor(rounding, dtype=torch.float64)))


def layer_link(bank: LoraBank, expert: int, start: int, end: int) -> LayerLink | None:
    return layer_links({"layer": bank}, start, end)[expert].get("layer")


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """Those of the principal angles, squared: what is left of either projector within the other."""
    projectors = [m @ torch.linalg.pinv(m) for m in (x, y)]
    least = min(x.shape[1], y.shape[1])
    return torch.linalg.svdvals(projectors[0] @ projectors[1])[:least].square()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "rank"),
    [([3.0], 1), ([2.0] * 5, 5), ([1.0, 0.0, 0.0], 1), ([0.0, 0.0], 0), ([1.0, 1.0, 0.0], 2)],
)
def test_effective_rank_of_plain_cases(values: list[float], rank: float) -> None:
    assert effective_rank(torch.tensor(values)).item() == pytest.approx(rank)


def test_effective_rank_is_the_formula_and_knows_no_scale() -> None:
    values = drawn(7).abs()
    p = [float(v) / float(values.sum()) for v in values]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert effective_rank(values).item() == pytest.approx(expected)
    assert effective_rank(1e-6 * values).item() == pytest.approx(expected)
    assert 1 < expected < 7


@pytest.mark.parametrize(("k", "l"), [(3, 3), (1, 5), (6, 2)])
def test_overlap_is_the_mean_cosine_squared_of_the_principal_angles(k: int, l: int) -> None:  # noqa: E741
    x, y = drawn(15, k), drawn(15, l, seed=1)
    y[:, 0] += 3 * x[:, 0]
    assert overlap_of(x, y) == pytest.approx(float(cosines(x, y).mean()))


@pytest.mark.parametrize("sizes", [(12, 6, 9), (5, 8, 30), (30, 8, 5), (7, 1, 7), (4, 9, 20), (6, 6, 6)])
def test_the_spectrum_is_that_of_the_product(sizes: tuple[int, int, int]) -> None:
    """Of several at once."""
    out, rank, features = sizes
    b, a = drawn(3, out, rank), drawn(3, rank, features, seed=1)
    whole, ours = torch.linalg.svdvals(b @ a), singular_values(a @ a.mT, b.mT @ b)
    least = min(sizes)
    assert torch.allclose(ours[:, :least], whole[:, :least], rtol=1e-9)
    assert ours[:, least:].sum() <= 1e-6 * whole.sum()
    assert torch.allclose(norm(a @ a.mT, b.mT @ b), torch.linalg.matrix_norm(b @ a), rtol=1e-12)


def test_singular_values_far_apart() -> None:
    """Down to 1e-7 of the largest; below that they are rounding."""
    b, a = drawn(20, 4), drawn(4, 30, seed=1)
    b *= torch.tensor([1.0, 1e-3, 1e-5, 1e-12])
    ours, whole = singular_values(a @ a.mT, b.mT @ b), torch.linalg.svdvals(b @ a)[:4]
    assert torch.allclose(ours[:3], whole[:3], rtol=1e-4)
    assert ours[3] < 1e-7 * ours[0]


def test_overlap_of_plain_cases() -> None:
    x = drawn(15, 4)
    assert overlap_of(x, x @ drawn(4, 4, seed=1)) == pytest.approx(1)  # another basis
    assert overlap_of(x[:, :2], x) == pytest.approx(1)  # one within the other
    assert overlap_of(x, drawn(15, 15, seed=1)) == pytest.approx(1)  # within all there is
    q = torch.linalg.qr(drawn(15, 8)).Q
    assert overlap_of(q[:, :3], q[:, 3:]) == pytest.approx(0)
    assert overlap_of(q[:, :4], q[:, 2:6]) == pytest.approx(0.5)  # two directions of four
    assert overlap_of(x, torch.zeros_like(x)) == 0


def test_overlap_of_random_spaces_is_by_chance() -> None:
    found = [overlap_of(drawn(40, 3, seed=i), drawn(40, 8, seed=1000 + i)) for i in range(200)]
    assert sum(found) / len(found) == pytest.approx(8 / 40, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deficient_factor_counts_by_its_true_rank(dtype: torch.dtype) -> None:
    """A copied column is no new direction, nor is one made by rounding."""
    x, y = drawn(15, 3).to(dtype), drawn(15, 2, seed=2).to(dtype)
    deficient = torch.cat([x, x[:, :1], x @ drawn(3, 2, seed=1).to(dtype)], dim=1)
    rounding = max(1e-7, 15 * torch.finfo(dtype).eps)
    assert overlap_of(deficient, x, rounding) == pytest.approx(1)
    assert overlap_of(deficient, y, rounding) == pytest.approx(overlap_of(x, y, rounding), rel=1e-4)


def test_a_deficient_link_of_a_float32_bank_counts_by_its_true_rank() -> None:
    """Its `A` holds two directions of the links before, and a third that is theirs but for rounding."""
    for bank in tied_chain(experts=1).banks.values():
        before, live = bank.ledger_A[0, :6], bank.lora_A.data[0]
        live[1], live[2] = before[0] + before[1] / 3, before[2] * 0.7
        found = layer_link(bank, 0, 6, 9)
        assert found is not None
        assert found.overlap_A is not None
        assert found.overlap_A == pytest.approx(float(cosines(live.mT.double(), before.mT.double()).mean()), rel=1e-5)
        assert found.overlap_A < 0.9
        live[0] = live[1] / 7 + live[2] / 3
        assert torch.linalg.matrix_rank(live.double()) == 3  # rounding makes the third
        within = layer_link(bank, 0, 6, 9)
        assert within is not None
        assert within.overlap_A == pytest.approx(1, rel=1e-5)


def tied_chain(arch: str = "llama", experts: int = 2) -> Chain:
    """Links of ranks 4, 2 and 3, of several scalings, the last one live; there is room in the ledger for more."""
    chain = Chain(tiny_model(arch), config(arch, r=4), range(experts))
    chain.reserve(11)
    for link, rank in enumerate((2, 3), 1):
        randomise(chain, link)
        chain.tie(10 * link)
        chain.extend(rank)
    randomise(chain, 3)
    return chain


SLICES = [(0, 4), (4, 6), (6, 9)]


def updates(bank: LoraBank, expert: int) -> list[Tensor]:
    """Each link's ΔW in float64."""
    ledger = bank.ledger_A[expert].double(), bank.ledger_B[expert].double(), bank.ledger_scale[expert].double()
    tied = [ledger[1][:, i:j] @ torch.diag(ledger[2][i:j]) @ ledger[0][i:j] for i, j in SLICES[:2]]
    live = bank.scaling[expert].double() * (bank.lora_B[expert].double() @ bank.lora_A[expert].double())
    return [*tied, live.detach()]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_link_of_a_layer_is_that_of_its_update(arch: str) -> None:
    chain = tied_chain(arch)
    for bank in chain.banks.values():
        for expert in range(2):
            each = updates(bank, expert)
            for link, (start, end) in enumerate(SLICES):
                found, whole = layer_link(bank, expert, start, end), torch.stack(each[: link + 1]).sum(0)
                assert found is not None
                values = torch.linalg.svdvals(whole)
                assert found.norm == pytest.approx(float(each[link].norm()), rel=1e-5)
                assert found.chain_norm == pytest.approx(float(whole.norm()), rel=1e-5)
                assert found.singular_values == pytest.approx(values[:end].tolist(), rel=1e-5)
                assert found.effective_rank == pytest.approx(effective_rank(values[:end]).item(), rel=1e-5)
                assert (found.overlap_A is None) == (found.overlap_B is None) == (link == 0)


def test_the_overlap_of_a_link_is_with_all_links_before() -> None:
    """Row spaces for `A`, column spaces for `B`, here those of the updates, whose factors have full rank."""
    for bank in tied_chain().banks.values():
        first, second, third = updates(bank, 1)
        found = layer_link(bank, 1, 6, 9)
        assert found is not None
        for ours, turned in ((found.overlap_B, False), (found.overlap_A, True)):
            x, y, z = (u.mT if turned else u for u in (first, second, third))
            spans = [torch.linalg.svd(m).U[:, :r] for m, r in ((torch.cat([x, y], 1), 6), (z, 3))]
            assert ours == pytest.approx(float(cosines(*spans).mean()), rel=1e-4)


def test_a_link_learned_twice_lies_within_the_first_and_doubles_it() -> None:
    chain = Chain(tiny_model("llama"), config("llama", r=4))
    randomise(chain, 1)
    twin = {name: (bank.lora_A.data.clone(), bank.lora_B.data.clone()) for name, bank in chain.banks.items()}
    chain.tie(1)
    chain.extend()
    for name, bank in chain.banks.items():
        bank.lora_A.data, bank.lora_B.data = twin[name]
        first, second = layer_link(bank, 0, 0, 4), layer_link(bank, 0, 4, 8)
        assert first is not None
        assert second is not None
        assert (second.overlap_A, second.overlap_B) == pytest.approx((1, 1))
        assert second.norm == pytest.approx(first.norm)
        assert second.chain_norm == pytest.approx(2 * first.norm)
        assert second.effective_rank == pytest.approx(first.effective_rank)
        assert len(second.singular_values) == 8
        assert second.singular_values[4:] == pytest.approx([0] * 4, abs=1e-6)


def test_a_link_that_has_learned_nothing() -> None:
    """`B` is zero: there is no update, and no column space that could lie within another."""
    chain = Chain(tiny_model("llama"), config("llama", r=4))
    bank = next(iter(chain.banks.values()))
    found = layer_link(bank, 0, 0, 4)
    assert found is not None
    assert (found.norm, found.chain_norm, found.effective_rank) == (0, 0, 0)
    chain.tie(1)
    chain.extend()
    found = layer_link(bank, 0, 4, 8)
    assert found is not None
    assert found.overlap_B == 0
    assert found.overlap_A is not None
    assert 0 < found.overlap_A < 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_link_has_no_numbers(bad: float) -> None:
    chain = tied_chain()
    bank = next(iter(chain.banks.values()))
    bank.lora_B.data[1, 0, 0] = bad
    assert layer_link(bank, 1, 6, 9) is None
    assert layer_link(bank, 1, 4, 6) is not None  # a link before
    assert layer_link(bank, 0, 6, 9) is not None  # another adapter


def test_the_factors_are_the_whole_update() -> None:
    for bank in tied_chain().banks.values():
        b, a = (factor[1] for factor in factors(bank))
        assert torch.allclose((b.double() @ a.double()), torch.stack(updates(bank, 1)).sum(0), atol=1e-4)
        assert b.shape[1] == 9  # without the empty room of the ledger


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same() -> None:
    chain = tied_chain(experts=3)
    expected = layer_links(chain.banks, 6, 9)
    torch.nn.Module.to(chain.model, "cuda")
    for ours, theirs in zip(layer_links(chain.banks, 6, 9), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for layer, found in theirs.items():
            assert vars(ours[layer]) == {key: pytest.approx(value) for key, value in vars(found).items()}
