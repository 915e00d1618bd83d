"""A text is the one that its prompt and its adapter give alone, whatever else is in the batch and was before it."""

from typing import Any

import pytest
import torch

from lorachains.errors import LorachainsError
from lorachains.generation import Generator, Sampling
from lorachains.routing import SoftRoute
from tests.adapters import randomise
from tests.generation.texts import OTHERS, by_argmax, by_transformers, chain_of, generator_of, model_of, prompts_of
from tests.tiny import ARCHITECTURES


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *OTHERS])
def test_greedy_texts_are_those_of_transformers(arch: str) -> None:
    """Over more tokens than a cache's smallest size; then up to a token that some texts have in their middle."""
    model, prompts = model_of(arch), prompts_of(3, 9, 5, 1)
    expected = by_transformers(model, prompts, 70)
    assert len({token for text in expected for token in text}) > 10
    assert Generator(model, 0, None, graphs=False)(prompts, 70) == expected
    end = expected[1][30]
    ended = by_transformers(model, prompts, 70, end)
    assert len(ended[1]) <= 31
    assert Generator(model, 0, end, graphs=False)(prompts, 70) == ended


def test_any_of_several_tokens_ends_a_text_and_all_ended_texts_end_the_loop() -> None:
    model, prompts, steps = model_of("llama"), prompts_of(3, 9), []
    model.register_forward_hook(lambda *_: steps.append(1))
    first, second = by_transformers(model, prompts, 20)
    steps.clear()
    ends = [first[4], second[7]]
    expected = [text[: min(text.index(end) for end in ends if end in text) + 1] for text in (first, second)]
    assert Generator(model, 0, ends, graphs=False)(prompts, 20) == expected
    assert len(steps) == max(map(len, expected)) < 20


def test_the_caller_may_end_each_text_by_what_has_come() -> None:
    """It sees each row's tokens in order, up to the one with which it ends the row; then no more steps are made."""
    chain, prompts, owners = chain_of("llama", 3), prompts_of(3, 9, 5), [2, 0, 1]
    generator, seen, steps = generator_of(chain), dict[int, list[int]](), list[int]()
    whole = generator(prompts, 9, torch.tensor(owners))

    def until(row: int, token: int) -> bool:
        seen.setdefault(row, []).append(token)
        return len(seen[row]) == 2 + 3 * row

    chain.model.register_forward_hook(lambda *_: steps.append(1))
    texts = generator(prompts, 9, torch.tensor(owners), until=until)
    assert texts == [text[: 2 + 3 * row] for row, text in enumerate(whole)]
    assert [seen[row] for row in range(3)] == texts
    assert len(steps) == 8
    seen.clear()
    assert generator(prompts, 4, torch.tensor(owners), until=until) == [text[:4] for text in [whole[0][:2], *whole[1:]]]
    assert [len(seen[row]) for row in range(3)] == [2, 4, 4]  # the last tokens are shown, too


def test_a_text_depends_neither_on_the_order_nor_on_the_company() -> None:
    chain, prompts, owners = chain_of("llama", 3), prompts_of(3, 9, 5, 30), [2, 0, 1, 1]
    generator = generator_of(chain)
    texts = generator(prompts, 8, torch.tensor(owners))
    order = [3, 1, 0, 2]
    shuffled = generator([prompts[i] for i in order], 8, torch.tensor([owners[i] for i in order]))
    assert shuffled == [texts[i] for i in order]
    assert generator(prompts[:2], 8, torch.tensor(owners[:2])) == texts[:2]


def test_a_drawn_text_depends_on_its_seed_and_adapter_alone() -> None:
    chain, prompts, owners, seeds = chain_of("llama", 2), prompts_of(3, 9, 3, 5), [1, 0, 1, 0], [7, 8, 9, 7]
    prompts[2] = prompts[0]
    generator = generator_of(chain)
    texts = generator(prompts, 12, torch.tensor(owners), Sampling(seeds, temperature=0.8, top_p=0.9))
    assert texts[0] != texts[2]
    for prompt, owner, seed, text in zip(prompts, owners, seeds, texts, strict=True):
        alone = Sampling([seed], temperature=0.8, top_p=0.9)
        assert generator([prompt], 12, torch.tensor([owner]), alone) == [text]
        assert generator([prompt], 5, torch.tensor([owner]), alone) == [text[:5]]
    greedy = generator(prompts, 12, torch.tensor(owners))
    assert generator(prompts, 12, torch.tensor(owners), Sampling(seeds, top_k=1)) == greedy != texts


def test_batches_of_one_shape_share_their_memory_and_nothing_else() -> None:
    chain, prompts, adapter = chain_of("llama", 2), prompts_of(3, 9), torch.tensor([0, 1])
    generator = generator_of(chain)
    expected = generator(prompts, 8, adapter)
    [lane] = generator._lanes.values()
    where = [t.data_ptr() for t in (lane.token, lane.out, lane.mask, lane.served[0].a, lane.served[0].b)]
    assert generator(prompts_of(40, 2), 20, adapter.flip(0)) != expected
    assert generator(prompts, 8, adapter) == expected
    assert [*generator._lanes.values()] == [lane]
    assert where == [t.data_ptr() for t in (lane.token, lane.out, lane.mask, lane.served[0].a, lane.served[0].b)]
    assert all(bank.served is None for bank in chain.banks.values())


def test_the_shapes_used_last_are_kept() -> None:
    generator = generator_of(chain_of("llama", 1))
    for rows in (1, 2, 3, 4, 1, 5):
        generator(prompts_of(*[3] * rows), 2)
    assert [len(lane.token) for lane in generator._lanes.values()] == [3, 4, 1, 5]
    generator.clear()
    assert not generator._lanes


def test_an_adapter_that_trains_on_is_taken_anew() -> None:
    chain, prompts = chain_of("llama", 1), prompts_of(3, 9)
    generator = generator_of(chain)
    before = generator(prompts, 8)
    randomise(chain, seed=5)
    assert generator(prompts, 8) == [by_argmax(chain, prompt, 8, 0) for prompt in prompts] != before


def test_a_failed_adapter_leaves_the_others_and_later_batches_alone() -> None:
    chain, prompts = chain_of("llama", 3), prompts_of(3, 9)
    generator = generator_of(chain)
    for bank in chain.banks.values():
        bank.lora_B.data[1] = float("nan")
    assert generator(prompts, 8, torch.tensor([0, 1]))[0] == by_argmax(chain, prompts[0], 8, 0)
    expected = [by_argmax(chain, prompt, 8, owner) for prompt, owner in zip(prompts, [0, 2], strict=True)]
    assert generator(prompts, 8, torch.tensor([0, 2])) == expected
    assert len(generator._lanes) == 1


def test_without_adapters_the_banks_follow_the_route_that_is_set() -> None:
    chain, prompts = chain_of("llama", 2), prompts_of(3, 9)
    generator = generator_of(chain)
    with pytest.raises(LorachainsError, match="needs a route"):
        generator(prompts, 8)
    chain.route = SoftRoute(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    soft = generator(prompts, 8)
    assert soft == [by_argmax(chain, prompt, 8, 1 - row) for row, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompts": [[3], []]}, "prompt 1 is empty"),
        ({"max_new_tokens": 255}, "3 tokens and max_new_tokens=255"),
        ({"adapter": torch.tensor([0, 2])}, "give each prompt one of 0 … 1"),
        ({"adapter": torch.tensor([0])}, "for 2 prompts"),
        ({"sampling": Sampling([1])}, "1 seeds for 2 prompts"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"prompts": prompts_of(3, 2), "max_new_tokens": 2, "adapter": torch.tensor([0, 1])}
    with pytest.raises(LorachainsError, match=message):
        generator_of(chain_of("llama", 2))(**given | arguments)


def test_no_prompts_give_no_texts() -> None:
    assert Generator(model_of("llama"), 0, None, graphs=False)([], 2) == []
