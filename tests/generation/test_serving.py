"""Each row is served by its own adapter, all links of it."""

from typing import Any

import pytest
import torch
from torch import nn

from lorachains.bank import LoraBank
from lorachains.generation.serving import Served
from lorachains.routing import Routing
from tests.adapters import ARCH_AND_FIELDS, peft_twin, randomise
from tests.generation.texts import by_argmax, by_transformers, chain_of, generator_of, model_of, prompts_of


@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
def test_each_row_is_served_by_its_own_adapter(arch: str, fields: dict[str, Any]) -> None:
    """Against PEFT with that adapter, each prompt alone."""
    chain, prompts, owners = chain_of(arch, 3, **fields), prompts_of(3, 9, 5, 1, 4), [2, 0, 1, 2, 0]
    texts = generator_of(chain)(prompts, 12, torch.tensor(owners))
    for prompt, owner, text in zip(prompts, owners, texts, strict=True):
        assert [text] == by_transformers(peft_twin(model_of(arch), chain, owner), [prompt], 12)
    assert texts[0] != by_argmax(chain, prompts[0], 12, 0)


@pytest.mark.parametrize("owners", [[0] * 6, [1, 0, 2, 2, 1, 0], [0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1]])
def test_however_the_adapters_are_shared_out(owners: list[int]) -> None:
    chain, prompts = chain_of("llama", 3), prompts_of(3, 9, 5, 1, 4, 2)[: len(owners)]
    expected = [by_argmax(chain, prompt, 8, owner) for prompt, owner in zip(prompts, owners, strict=True)]
    assert generator_of(chain)(prompts, 8, torch.tensor(owners)) == expected


@pytest.mark.parametrize(("mode", "experts"), [("ledger", 3), ("merge", 1)])
@pytest.mark.parametrize("fields", [{}, {"lora_bias": True, "init_lora_weights": True}])
def test_tied_links_count(mode: Any, experts: int, fields: dict[str, Any]) -> None:
    """With the same generator before and after knots."""
    chain, prompts = chain_of("opt", experts, **fields), prompts_of(3, 9, 5)
    generator, adapter = generator_of(chain), torch.arange(3) % experts
    seen = []
    for knot in range(3):
        expected = [by_argmax(chain, prompt, 8, row % experts) for row, prompt in enumerate(prompts)]
        assert generator(prompts, 8, adapter) == expected
        seen.append(expected)
        chain.tie(knot, mode)
        chain.extend(rank=2)
        randomise(chain, seed=knot + 1)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("fields", [{}, {"lora_bias": True, "init_lora_weights": True}])
def test_the_kernel_for_few_tokens_serves_as_the_products_do(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton isn't installed")
    if torch.cuda.is_available():
        pytest.skip("kernels run on the CUDA device")
    chain, prompts, owners = chain_of("llama", 3, **fields), prompts_of(3, 20, 5, 1, 4), torch.tensor([2, 0, 1, 2, 0])
    expected = generator_of(chain)(prompts, 6, owners)
    launched: list[int] = []

    def noting(x: torch.Tensor) -> bool:
        launched.append(x.shape[1])
        return True

    monkeypatch.setattr("lorachains.generation.serving.usable", noting)
    assert generator_of(chain)(prompts, 6, owners) == expected
    assert set(launched) == {1}


@pytest.mark.parametrize(("in_features", "rank"), [(32, 65), (1025, 4)])
def test_what_is_larger_is_served_by_the_products(in_features: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes no higher rank, and is slower in a larger layer."""
    monkeypatch.setattr("lorachains.generation.serving.usable", lambda _: True)
    monkeypatch.setattr("lorachains.generation.serving.add_lora", lambda *_: pytest.fail("by the kernel"))
    bank = LoraBank(nn.Linear(in_features, 1024), 3, Routing())
    served = Served(bank, 2, rank, torch.float32)
    served.a.normal_()
    served.b.normal_()
    x, y = torch.randn(2, in_features), torch.randn(2, 1024)
    right = y + torch.einsum("gor,gri,gi->go", served.b, served.a, x)
    torch.testing.assert_close(served(x, y), right, rtol=1e-4, atol=1e-3)
