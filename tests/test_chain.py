"""Knots: the function stays, the live link starts anew, and every moment of the chain can be found again."""

from typing import Any

import pytest
import torch

from lorachains.chain import Chain, Mode
from lorachains.errors import LorachainsError
from lorachains.live_link import live_link, restore
from lorachains.routing import HardRoute
from tests.adapters import ARCH_AND_FIELDS, config, inputs, randomise
from tests.tiny import tiny_model

MODES: list[Mode] = ["ledger", "merge"]


def tied_chain(arch: str, dtype: torch.dtype, mode: Mode, ranks: tuple[int, ...] = (4, 2, 3)) -> Chain:
    """A chain with a link of each rank, the last one live, all random."""
    chain = Chain(tiny_model(arch, dtype).eval(), config(arch, r=ranks[0]))
    for link, rank in enumerate(ranks[1:], 1):
        randomise(chain, link)
        chain.tie(10 * link, mode)
        chain.extend(rank)
    randomise(chain, len(ranks))
    return chain


@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_knot_leaves_the_logits_and_starts_a_fresh_link(arch: str, mode: Mode, fields: dict[str, Any]) -> None:
    chain = Chain(tiny_model(arch, torch.float64).eval(), config(arch, **fields))
    x = inputs(3)
    for link in range(3):
        randomise(chain, link)
        before = chain.model(x).logits
        assert chain.tie(link, mode) < 1e-12
        chain.extend(2)
        assert (chain.model(x).logits - before).abs().max() < 1e-10
        assert all(not bank.lora_B.any() for bank in chain.banks.values())
        assert all(bank.lora_bias is None or not bank.lora_bias.any() for bank in chain.banks.values())
    assert chain.ranks == [4, 2, 2]
    assert chain.knots == [0, 1, 2]


def test_ledger_and_merge_are_the_same_function() -> None:
    ledger, merge = (tied_chain("llama", torch.float64, mode) for mode in MODES)
    assert (ledger.model(inputs(3)).logits - merge.model(inputs(3)).logits).abs().max() < 1e-10
    original = tiny_model("llama", torch.float64).state_dict()
    for name, bank in ledger.banks.items():
        assert torch.equal(bank.base_layer.weight, original[f"{name}.weight"])
        assert not torch.equal(merge.banks[name].base_layer.weight, original[f"{name}.weight"])


def test_a_bfloat16_merge_reports_the_update_it_loses() -> None:
    """Against the loss counted from the weights themselves."""
    chain = Chain(tiny_model("llama", torch.bfloat16), config("llama"))
    randomise(chain)
    for bank in chain.banks.values():
        bank.lora_B.data *= 1e-3  # so small that most of the update falls below the weights' last bit
    before = {name: bank.base_layer.weight.double() for name, bank in chain.banks.items()}
    update = {n: 2.0 * (b.lora_B[0].double() @ b.lora_A[0].double()).detach() for n, b in chain.banks.items()}
    lost = chain.tie(1, "merge")
    done = {name: bank.base_layer.weight.double() - before[name] for name, bank in chain.banks.items()}
    error = sum(float((done[name] - update[name]).square().sum()) for name in update)
    size = sum(float(update[name].square().sum()) for name in update)
    assert lost == pytest.approx((error / size) ** 0.5, rel=1e-3)
    assert lost > 0.1


@pytest.mark.parametrize("first", [False, True])
def test_a_fresh_link_is_a_new_draw_or_a0(first: bool) -> None:
    chain = Chain(tiny_model("llama"), config("llama"))
    a0 = {name: bank.lora_A.detach().clone() for name, bank in chain.banks.items()}
    randomise(chain)
    chain.tie(1)
    chain.extend(first=first)
    assert all(torch.equal(bank.lora_A, a0[name]) == first for name, bank in chain.banks.items())


def test_links_of_other_scaling() -> None:
    chain = Chain(tiny_model("llama", torch.float64).eval(), config("llama", r=4))
    randomise(chain)
    chain.tie(1)
    chain.extend(2, alpha_over=4)
    assert {float(bank.scaling) for bank in chain.banks.values()} == {2.0}
    chain.extend(2)
    assert {float(bank.scaling) for bank in chain.banks.values()} == {4.0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("links", [0, 1, 2])
def test_rewind_finds_every_knot_again(mode: Mode, links: int) -> None:
    chain = Chain(tiny_model("gpt2", torch.float32).eval(), config("gpt2"))
    x, seen = inputs(3), [chain.model(inputs(3)).logits]
    for link in range(3):
        randomise(chain, link)
        chain.tie(link, mode)
        chain.extend()
        seen.append(chain.model(x).logits)
    chain.rewind(links)
    assert torch.equal(chain.model(x).logits, seen[links])
    assert chain.ranks == [4] * links
    assert all(not bank.lora_B.any() for bank in chain.banks.values())


@pytest.mark.parametrize("mode", MODES)
def test_an_earlier_live_link_is_restored_with_its_knots(mode: Mode) -> None:
    chain = tied_chain("llama", torch.float32, mode, (4, 2))
    x = inputs(3)
    then, kept = chain.model(x).logits, live_link(chain, 0)
    chain.tie(50, mode)
    chain.extend(3)
    randomise(chain, 9)
    assert not torch.allclose(chain.model(x).logits, then)
    restore(chain, [kept])
    assert torch.equal(chain.model(x).logits, then)
    assert chain.rank == 2
    assert chain.ranks == [4]


def test_adapters_are_restored_each_to_its_own_moment() -> None:
    chain = Chain(tiny_model("llama", torch.float64).eval(), config("llama"), seeds=[0, 1])
    x = inputs(2)
    chain.route = HardRoute(torch.tensor([0, 1]))
    randomise(chain, 1)
    early, kept_early = chain.model(x).logits, live_link(chain, 0)
    chain.tie(5)
    chain.extend(2)
    randomise(chain, 2)
    late, kept_late = chain.model(x).logits, live_link(chain, 1)
    randomise(chain, 3)
    restore(chain, [kept_early, kept_late])
    now = chain.model(x).logits
    assert (now[0] - early[0]).abs().max() < 1e-10
    assert (now[1] - late[1]).abs().max() < 1e-10


@pytest.mark.parametrize("mode", MODES)
def test_state_dict_replays_the_chain_bit_for_bit(mode: Mode) -> None:
    chain = tied_chain("opt", torch.bfloat16, mode)
    again = Chain(tiny_model("opt", torch.bfloat16).eval(), config("opt"))
    again.load_state_dict(chain.state_dict())
    x = inputs(3)
    assert torch.equal(again.model(x).logits, chain.model(x).logits)
    assert (again.ranks, again.knots, again.merged) == (chain.ranks, chain.knots, chain.merged)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in chain.state_dict().items())
    assert not any("base_layer" in key for key in chain.state_dict())


def test_a_state_of_another_model_is_refused() -> None:
    state = Chain(tiny_model("llama"), config("llama")).state_dict()
    with pytest.raises(LorachainsError, match="of other layers"):
        Chain(tiny_model("opt"), config("opt")).load_state_dict(state)
    with pytest.raises(LorachainsError, match="of another model"):
        Chain(tiny_model("llama"), config("llama"), seeds=[0, 1]).load_state_dict(state)


def test_merge_refuses_what_it_cannot_do() -> None:
    with pytest.raises(LorachainsError, match=r"knots\.mode=merge with 2 adapters"):
        Chain(tiny_model("llama"), config("llama"), seeds=[0, 1]).check_mergeable()
    tied = tiny_model("gpt2")  # its head is its embedding
    with pytest.raises(LorachainsError, match="lm_head: its weight is shared"):
        Chain(tied, config("gpt2", target_modules=["lm_head"])).check_mergeable()


@pytest.mark.parametrize("mode", MODES)
def test_loading_twice_is_loading_once(mode: Mode) -> None:
    chain = tied_chain("llama", torch.float64, mode)
    x = inputs(3)
    before, state = chain.model(x).logits, chain.state_dict()
    chain.load_state_dict(state)
    assert torch.equal(chain.model(x).logits, before)
    chain.load_state_dict(Chain(tiny_model("llama", torch.float64), config("llama")).state_dict())
    assert torch.equal(chain.model(x).logits, tiny_model("llama", torch.float64).eval()(x).logits)


@pytest.mark.parametrize(("first", "second"), [("ledger", "merge"), ("merge", "ledger")])
def test_a_chain_is_tied_in_one_mode(first: Mode, second: Mode) -> None:
    chain = tied_chain("llama", torch.float64, first, (4, 2))
    with pytest.raises(LorachainsError, match="a chain is tied in one mode"):
        chain.tie(50, second)
