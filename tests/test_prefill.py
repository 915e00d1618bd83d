"""What the base has read of a prompt serves every adapter that goes on from there, as if each had read it itself."""

import pytest
import torch

from lorachains.batch import IGNORED, Tokens, pack
from lorachains.errors import LorachainsError
from lorachains.packing import hard_route
from lorachains.prefill import Prefill, continues
from lorachains.routing import HardRoute
from lorachains.scoring import answer_losses
from tests.generation.texts import OTHERS, chain_of, generator_of, prompts_of
from tests.tiny import ARCHITECTURES

STREAMS = [arch for arch in ARCHITECTURES if arch != "bloom"] + ["gemma3_text"]
NAMES = [[7, 11, 13, 2], [7, 11, 17, 19, 2], [7, 11, 2], [7, 11, 13, 5, 2]]
RESTS = [Tokens(name, [IGNORED] * 2 + name[2:]) for name in NAMES]


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *OTHERS])
def test_what_can_be_continued(arch: str) -> None:
    chain = chain_of(arch, 2)
    assert continues(chain.model, list(chain.banks.values())) == (arch in STREAMS)


@pytest.mark.parametrize("arch", STREAMS)
def test_names_are_scored_behind_it_as_in_whole_texts(arch: str) -> None:
    """In any order of the prompts, one of them twice, and again from the same reading."""
    chain, prompts = chain_of(arch, 3), prompts_of(9, 1, 14)
    chain.route = HardRoute(torch.tensor([1]))
    read, order = Prefill(chain.model, list(chain.banks.values()), prompts), [2, 0, 0, 1]
    chain.route = HardRoute(torch.tensor([1]))
    ours = read.of(order).log_likelihoods(RESTS)
    torch.testing.assert_close(read.log_likelihoods(RESTS), ours[[1, 3, 0]])
    for row, i in enumerate(order):
        for name, rest in enumerate(RESTS):
            whole = Tokens(
                [*prompts[i], *rest.input_ids], [IGNORED] * len(prompts[i]) + rest.labels, start=len(prompts[i])
            )
            batch = pack([whole], [1], experts=3)
            chain.route = hard_route(chain.model, batch)
            torch.testing.assert_close(ours[row, name], -answer_losses(chain.model, batch).sum().detach())


def by_hand(arch: str, prompt: list[int], start: int, steps: int, expert: int) -> list[int]:
    """One text without a cache: the base up to the start, an adapter from there."""
    chain, ids = chain_of(arch, 3), list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            active = torch.arange(len(ids)) >= start
            chain.route = HardRoute(torch.tensor([expert]), None, active)
            ids.append(int(chain.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("starts", [[7, 2, 22], [7, 1, 12]])
@pytest.mark.parametrize("arch", [*ARCHITECTURES, *OTHERS])
def test_texts_are_those_of_one_row_without_a_cache(arch: str, starts: list[int]) -> None:
    """Whether the generator reads the first parts, or takes them over; and whether the rest is of one length."""
    chain, prompts, owners = chain_of(arch, 3), prompts_of(9, 4, 24), [2, 0, 2]
    expected = [by_hand(arch, *row) for row in zip(prompts, starts, [6] * 3, owners, strict=True)]
    banks, owned = list(chain.banks.values()), torch.tensor(owners)
    generator = generator_of(chain)
    assert generator(prompts, 6, owned, starts=starts) == expected
    assert generator(prompts, 6, owned) != expected
    if continues(chain.model, banks):
        read = Prefill(chain.model, banks, [p[:n] for p, n in zip(prompts, starts, strict=True)])
        for _ in range(2):
            assert generator(prompts, 6, owned, starts=starts, prefill=read) == expected


def test_an_adapter_that_begins_right_behind_the_prompt_serves_its_last_token() -> None:
    """Else nothing would predict the first token."""
    chain, [prompt] = chain_of("llama", 3), prompts_of(6)
    read = Prefill(chain.model, list(chain.banks.values()), [prompt])
    expected = [by_hand("llama", prompt, 5, 4, 1)]
    for prefill in (None, read):
        found = generator_of(chain)([prompt], 4, torch.tensor([1]), starts=[6], prefill=prefill)
        assert found == expected


@pytest.mark.parametrize(("prompt", "start"), [([5, 6], 0), ([5], 1)])
def test_a_start_with_nothing_before_it_is_refused(prompt: list[int], start: int) -> None:
    with pytest.raises(LorachainsError, match=r"nothing before its adapter's activation"):
        generator_of(chain_of("llama", 1))([prompt], 2, starts=[start])
