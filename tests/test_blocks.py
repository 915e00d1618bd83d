"""What blocks read, against transformers' own hidden states; routes of their own."""

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from lorachains.blocks import Blocks
from lorachains.errors import LorachainsError
from lorachains.routing import HardRoute
from tests.adapters import TARGETS, inputs
from tests.generation.texts import chain_of
from tests.tiny import tiny_model


@pytest.mark.parametrize("arch", TARGETS)
def test_blocks_read_what_transformers_calls_hidden_states(arch: str) -> None:
    chain = chain_of(arch, 1)
    seen: list[Tensor] = []
    with Blocks(chain.model, chain.banks).watched(lambda block, x: seen.append(x)):
        found = chain.model(inputs(2), output_hidden_states=True).hidden_states
    assert len(seen) == 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, found[:-1], strict=True))
    chain.model(inputs(2))
    assert len(seen) == 2, "afterwards nobody looks any more"


def test_each_block_follows_its_own_route() -> None:
    """As if the other block's banks were zero and the two effects were put together by hand."""
    chain = chain_of("llama", 3)
    blocks = Blocks(chain.model, chain.banks)
    with blocks.routed([HardRoute(torch.tensor([1, 1])), HardRoute(torch.tensor([2, 0]))]):
        ours = chain.model(inputs(2)).logits
    expected = []
    for row, second in enumerate([2, 0]):
        for of_block, expert in zip(blocks.banks, [1, second], strict=True):
            for bank in of_block:
                bank.routing = type(bank.routing)(HardRoute(torch.tensor([expert])))
        expected.append(chain.model(inputs(2)[row : row + 1]).logits)
    torch.testing.assert_close(ours, torch.cat(expected))


def test_afterwards_all_follow_the_chains_route_again() -> None:
    chain = chain_of("llama", 3)
    with Blocks(chain.model, chain.banks).routed([None, None]):
        assert all(bank.routing is not chain.routing for bank in chain.banks.values())
    assert all(bank.routing is chain.routing for bank in chain.banks.values())


def test_a_bank_outside_of_the_blocks_is_refused() -> None:
    chain = chain_of("llama", 1, target_modules=["q_proj", "lm_head"])
    with pytest.raises(LorachainsError, match="takes in lm_head, which is in no decoder block"):
        Blocks(chain.model, chain.banks)


def test_blocks_are_watched_from_outside_of_what_is_compiled() -> None:
    """With layers compiled as one function, which nobody's looking compiles again."""
    model, sizes = tiny_model("llama").eval(), []  # without banks: beartype's checks can't be compiled
    blocks = Blocks(model, {})
    expected = model(inputs(2)).logits
    compiled = torch._dynamo.testing.CompileCounter()
    for layer in blocks.layers:
        layer.compile(backend=compiled, dynamic=True)
    with blocks.watched(lambda block, x: sizes.append((block, *x.shape))):
        torch.testing.assert_close(model(inputs(2)).logits, expected)
        once = compiled.frame_count
        model(inputs(3, 5))
    assert sizes == [(0, 2, 9, 32), (1, 2, 9, 32), (0, 3, 5, 32), (1, 3, 5, 32)]
    model(inputs(2, 7))
    assert compiled.frame_count == once == 1
