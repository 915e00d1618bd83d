"""A chain of several adapters: an adapter a row, in tensors that an optimizer steps, each with an alpha of its own."""

import copy
from typing import Any

import pytest
import torch

from lorachains.chain import Chain
from lorachains.live_link import live_link, restore
from lorachains.routing import HardRoute
from tests.adapters import BIAS, config, inputs, randomise
from tests.tiny import tiny_model


def three(arch: str = "llama", **fields: Any) -> Chain:
    return Chain(tiny_model(arch, torch.float64).eval(), config(arch, **fields), seeds=[0, 1, 2])


def row(chain: Chain, adapter: int) -> torch.Tensor:
    return torch.cat([parameter.detach()[adapter].flatten() for parameter in chain.parameters()])


def lies_flat(chain: Chain) -> bool:
    """Whether each row of `flat` is an adapter's live link, and writing into it changes that adapter alone."""
    before = [row(chain, adapter) for adapter in range(3)]
    if not torch.equal(torch.cat([part.detach() for part in chain.flat]), torch.stack(before)):
        return False
    for part in chain.flat:
        part.data += torch.arange(len(part)).unsqueeze(1) + 1
    changes = [row(chain, adapter) - before[adapter] for adapter in range(3)]
    steps = [float(i + 1) for part in chain.flat for i in range(len(part))]
    return all(
        torch.allclose(change, torch.full_like(change, step)) for change, step in zip(changes, steps, strict=True)
    )


@pytest.mark.parametrize("sizes", [[3], [1, 2]])
@pytest.mark.parametrize(("arch", "fields"), [("llama", {}), ("opt", BIAS)])
def test_live_links_lie_flat_whatever_was_done(arch: str, fields: dict[str, Any], sizes: list[int]) -> None:
    chain = three(arch, **fields)
    chain.split(sizes)
    assert [len(part) for part in chain.flat] == sizes
    assert lies_flat(chain)
    parts = list(chain.flat)
    kept, state = [live_link(chain, adapter) for adapter in range(3)], copy.deepcopy(chain.state_dict())
    chain.tie(1)
    chain.extend(2)
    assert lies_flat(chain)
    restore(chain, kept)
    assert lies_flat(chain)
    chain.rewind(0)
    assert lies_flat(chain)
    chain.load_state_dict(state)
    assert lies_flat(chain)
    assert all(ours is theirs for ours, theirs in zip(chain.flat, parts, strict=True))  # an optimizer knows them


@pytest.mark.parametrize("sizes", [[3], [1, 2]])
def test_gradients_lie_flat_too(sizes: list[int]) -> None:
    """Against `backward` on the banks' own tensors; they add up, by their weights."""
    chain = three()
    randomise(chain)
    chain.split(sizes)
    chain.route = HardRoute(torch.tensor([0, 1, 2]))
    loss = chain.model(inputs(3)).logits.square().sum()
    gradient = chain.differentiate(loss)
    chain.model(inputs(3)).logits.square().sum().backward()
    expected = torch.cat([p.grad.flatten(1) for p in chain.parameters() if p.grad is not None], 1)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    chain.add_gradient(gradient, 0.5)
    chain.add_gradient(gradient, 2.0)
    added = torch.cat([part.grad for part in chain.flat if part.grad is not None])
    assert torch.allclose(added, 2.5 * expected, rtol=1e-12)


def addresses(chain: Chain) -> list[int]:
    ledgers = [t for bank in chain.banks.values() for t in (bank.ledger_A, bank.ledger_B, bank.ledger_scale)]
    return [tensor.data_ptr() for tensor in [*chain.flat, *chain.parameters(), *ledgers]]


def test_knots_move_nothing_where_room_is_reserved() -> None:
    """And change nothing that is computed or saved."""
    roomy, tight = three(), three()
    roomy.reserve(4 + 4)
    places, layout = addresses(roomy), roomy.layout
    for chain in (roomy, tight):
        chain.route = HardRoute(torch.tensor([2, 0, 1]))
        for link in (1, 2):
            randomise(chain, link)
            chain.tie(link)
            chain.extend(4)
        randomise(chain, 3)
    assert addresses(roomy) == places
    assert roomy.layout == layout
    assert tight.layout > 1
    assert (roomy.model(inputs(3)).logits - tight.model(inputs(3)).logits).abs().max() < 1e-10
    ours, theirs = roomy.state_dict(), tight.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    roomy.rewind(1)
    tight.rewind(1)
    assert (roomy.model(inputs(3)).logits - tight.model(inputs(3)).logits).abs().max() < 1e-10
    assert all(bank.ledger_A.shape[1] == 8 and bank.tied == 4 for bank in roomy.banks.values())


@pytest.mark.parametrize("rslora", [False, True])
def test_each_adapter_has_an_alpha_of_its_own(rslora: bool) -> None:
    """Over two links, against chains of one adapter with that alpha."""
    alphas, x = [4, 8, 32], inputs(3)
    configs = [config("llama", lora_alpha=alpha, use_rslora=rslora) for alpha in alphas]
    together = Chain(tiny_model("llama", torch.float64).eval(), configs, seeds=[0, 1, 2])
    alone = [Chain(tiny_model("llama", torch.float64).eval(), one, seeds=[seed]) for seed, one in enumerate(configs)]
    for link in (1, 2):
        randomise(together, link)
        for adapter, chain in enumerate(alone):
            for name, bank in chain.banks.items():
                bank.lora_B.data = together.banks[name].lora_B.detach()[adapter : adapter + 1].clone()
                bank.lora_A.data = together.banks[name].lora_A.detach()[adapter : adapter + 1].clone()
        together.route = HardRoute(torch.tensor([0, 1, 2]))
        logits = together.model(x).logits
        for adapter, chain in enumerate(alone):
            assert (logits[adapter] - chain.model(x[adapter : adapter + 1]).logits[0]).abs().max() < 1e-10
            chain.tie(link)
            chain.extend(2, alpha_over=4 if link == 1 else None)
        together.tie(link)
        together.extend(2, alpha_over=4 if link == 1 else None)
