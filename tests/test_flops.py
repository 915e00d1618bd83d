"""FLOPs are those that PyTorch's own counter sees, and the paper's estimator is that of HF's Trainer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, Trainer

from lorachains import scoring
from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.flops import Costs, costs, counted, estimated, pairs
from lorachains.loads import Load
from lorachains.models.checkpointing import checkpoint_layers
from lorachains.packing import hard_route
from lorachains.scoring import answer_losses
from lorachains.tracing import short_batch, trace
from tests.adapters import config, peft_twin
from tests.batches import texts_of
from tests.tiny import ARCHITECTURES, tiny_model

TEXTS = [*texts_of((23, 3), (5, 4), (40, 1), (12, 11)), *texts_of((23, 3))]
"""Of which the last is the first again."""

pytestmark = pytest.mark.usefixtures("plain_attention")


def loss_of(model: PreTrainedModel, batch: TokenBatch, chain: Chain | None) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        if chain is not None:
            chain.route = hard_route(model, batch)
        return answer_losses(model, batch).sum()

    return loss


def measured(model: PreTrainedModel, chain: Chain | None = None, texts: list[Tokens] = TEXTS) -> int:
    """What PyTorch counts in a training pass."""
    loss = loss_of(model, pack(texts), chain)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss(), [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return counter.get_total_flops()


def cost_of(model: PreTrainedModel, chain: Chain | None = None) -> Costs:
    batch = short_batch(1 if chain is None else chain.experts)
    found = trace(model, batch, loss_of(model, batch, chain))
    assert not found.uncounted
    return costs(model, found)


def ours(model: PreTrainedModel, chain: Chain | None = None, texts: list[Tokens] = TEXTS) -> int:
    cost = cost_of(model, chain)
    return sum(counted(cost, load) for load in pack(texts).loads)


def tied(chain: Chain, *ranks: int) -> Chain:
    for rank in ranks:
        chain.tie(0)
        chain.extend(rank)
    return chain


@pytest.mark.parametrize("r", [2, 8])
@pytest.mark.parametrize("links", [0, 2])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_flops_are_those_that_pytorch_counts(arch: str, links: int, r: int) -> None:
    model = tiny_model(arch).train()
    chain = tied(Chain(model, config(arch, r=r)), *[r] * links)
    assert ours(model, chain) == measured(model, chain)


@pytest.mark.parametrize(
    ("arch", "fields"),
    [
        ("llama", {"target_modules": ["down_proj"]}),
        ("llama", {"target_modules": ["k_proj"]}),
        ("opt", {"layers_to_transform": [1], "layers_pattern": "layers"}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("gpt2", {"lora_dropout": 0.3}),
        ("qwen2", {"target_modules": "all-linear"}),
        ("bloom", {"target_modules": ["dense_4h_to_h"]}),
    ],
)
def test_gradients_are_counted_where_they_flow(arch: str, fields: dict[str, Any]) -> None:
    """Nowhere below the first bank; of a ledger with dropout only through it."""
    model = tiny_model(arch).train()
    chain = Chain(model, config(arch, **fields))
    assert ours(model, chain) == measured(model, chain)
    assert ours(model, tied(chain, 2)) == measured(model, chain)


@pytest.mark.parametrize("fields", [{}, {"lora_dropout": 0.3}])
@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2", "bloom"])
def test_recomputed_activations_are_counted(arch: str, fields: dict[str, Any]) -> None:
    model = tiny_model(arch).train()
    plain = ours(model, tied(Chain(model, config(arch, **fields)), 2))
    again = tiny_model(arch).train()
    checkpoint_layers(again)
    chain = tied(Chain(again, config(arch, **fields)), 2)
    assert plain < ours(again, chain) == measured(again, chain)


@pytest.mark.parametrize(
    ("arch", "fields"), [("opt", {"dropout": 0.2}), ("gpt2", {"resid_pdrop": 0.2}), ("gemma3_text", {})]
)
def test_a_recomputation_goes_as_far_as_it_must(arch: str, fields: dict[str, Any]) -> None:
    """To the end of a layer if dropout or a norm comes last."""
    model = tiny_model(arch, **fields).train()
    checkpoint_layers(model)
    chain = Chain(model, config("llama", target_modules=["q_proj"] if arch != "gpt2" else ["c_attn"]))
    assert ours(model, chain) == measured(model, chain)


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_logits_in_chunks_are_counted_twice(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(arch).train()
    chain = Chain(model, config(arch))
    monkeypatch.setattr(scoring, "CHUNK", 19)
    texts = texts_of((23, 9), (31, 11))
    assert ours(model, chain, texts) == measured(model, chain, texts)
    assert ours(model, chain, texts[1:]) == measured(model, chain, texts[1:])


def test_a_merged_link_costs_nothing() -> None:
    model = tiny_model("llama").train()
    chain = Chain(model, config("llama"))
    before = ours(model, chain)
    chain.tie(0, "merge")
    chain.extend()
    assert ours(model, chain) == before == measured(model, chain)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_weights_trained(arch: str) -> None:
    model = tiny_model(arch).train()
    assert ours(model) == measured(model)


def test_room_in_a_ledger_is_not_counted() -> None:
    model = tiny_model("llama").train()
    chain = Chain(model, config("llama"))
    before = ours(model, chain)
    chain.reserve(16)
    assert ours(model, chain) == before


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_side_by_side_costs_each_what_it_costs_alone(arch: str) -> None:
    owners = [2, 0, 2, 0, 2]
    model = tiny_model(arch).train()
    together = cost_of(model, Chain(model, config(arch), seeds=[0, 1, 2]))
    for owner, load in enumerate(pack(TEXTS, owners, experts=3).loads):
        texts = [text for text, mine in zip(TEXTS, owners, strict=True) if mine == owner]
        model = tiny_model(arch).train()
        alone = cost_of(model, Chain(model, config(arch)))
        expected = pack(texts).loads[0] if texts else Load(0, 0, (), 0)
        assert counted(together, load) == counted(alone, expected)
        assert estimated(together, load) == estimated(alone, expected)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 30])
def test_pairs(window: int | None, kernel: bool) -> None:
    computed = [
        (i, j) for i in range(9) for j in range(9) if not kernel or (j <= i and i - j < (window or 9))
    ]  # fmt: skip
    assert pairs(9, kernel, window) == len(computed)


def test_a_trace_leaves_no_trace() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.1).train()
    chain = Chain(model, config("gpt2", lora_dropout=0.1))
    before, hooks = torch.random.get_rng_state(), [len(m._forward_hooks) for m in model.modules()]
    cost_of(model, chain)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_weights_of_other_kinds_are_named() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].mlp.experts = torch.nn.Conv1d(2, 3, 5)
    found = trace(model, batch := short_batch(1), loss_of(model, batch, None))
    assert found.uncounted == ["model.layers.0.mlp.experts.weight"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_papers_estimator_is_that_of_transformers(arch: str) -> None:
    """With PEFT's model of the live link, on padded texts; whatever is in the ledger."""
    model = tiny_model(arch).train()
    chain = Chain(model, config(arch))
    twin = peft_twin(tiny_model(arch), chain, 0)
    texts = texts_of((7, 1), (12, 3), (4, 2))
    theirs = Trainer.floating_point_ops(
        SimpleNamespace(model=twin.base_model.model),  # type: ignore[arg-type]
        {"input_ids": torch.zeros(3, 12)},
    )
    assert estimated(cost_of(model, chain), pack(texts).loads[0]) == theirs
    assert estimated(cost_of(model, tied(chain, 4)), pack(texts).loads[0]) == theirs
