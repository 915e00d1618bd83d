"""A bank's row is PEFT's adapter: same weights in, same logits and gradients out, alone or in a mixed batch."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from lorachains import routing
from lorachains.bank import LoraBank
from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.merging import why_not_mergeable
from lorachains.routing import HardRoute, Routing, SoftRoute, lora_delta
from tests.adapters import (
    ARCH_AND_FIELDS,
    BIAS,
    TARGETS,
    TOLERANCE,
    WITH_BIAS,
    config,
    inputs,
    peft_gradients,
    peft_twin,
    randomise,
)
from tests.tiny import ARCHITECTURES, tiny_model

DTYPES = [torch.float32, torch.float64]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() <= TOLERANCE[a.dtype] * (b.norm() + 1e-12))


@pytest.mark.parametrize(
    ("arch", "fields"),
    [
        *ARCH_AND_FIELDS,
        *((arch, {"use_rslora": True, "r": 3}) for arch in ARCHITECTURES),
        *((arch, {"target_modules": "all-linear"}) for arch in ARCHITECTURES),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_adapter_is_pefts(arch: str, dtype: torch.dtype, fields: dict[str, Any]) -> None:
    model = tiny_model(arch, dtype).eval()
    twin_base = copy.deepcopy(model)
    chain = Chain(model, config(arch, **fields))
    randomise(chain)
    twin = peft_twin(twin_base, chain, 0)
    x = inputs(3)
    ours, theirs = model(x).logits, twin(x).logits
    assert close(ours, theirs)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradients = peft_gradients(twin)
    assert gradients.keys() == {
        key for key in chain.state_dict() if key.split(".")[-1] in ("lora_A", "lora_B", "lora_bias")
    }
    for name, bank in chain.banks.items():
        for key in ("lora_A", "lora_B", "lora_bias"):
            if (parameter := getattr(bank, key)) is not None:
                assert close(parameter.grad[0], gradients[f"{name}.{key}"]), f"{name}.{key}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
def test_mixed_batch_is_separate_peft_forwards(
    arch: str, dtype: torch.dtype, joint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_as_one", lambda x, a: True)  # as on a GPU
    model = tiny_model(arch, dtype).eval()
    base = copy.deepcopy(model)
    chain = Chain(model, config(arch), seeds=[0, 1, 2])
    randomise(chain)
    x, index = inputs(5), torch.tensor([2, 0, 1, 2, 0])
    chain.route = HardRoute(index, joint=joint)
    mixed = model(x).logits
    mixed.square().sum().backward()
    for expert in range(3):
        twin = peft_twin(copy.deepcopy(base), chain, expert)
        alone = twin(x[index == expert]).logits
        assert close(mixed[index == expert], alone)
        alone.square().sum().backward()
        for name, gradient in peft_gradients(twin).items():
            layer, _, key = name.rpartition(".")
            assert close(getattr(chain.banks[layer], key).grad[expert], gradient), name


@pytest.mark.parametrize("seq", [6, 1])
def test_ranks_as_one_are_each_rows_own(seq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product and its gradients, of rows and of a stream, with tokens that no adapter serves; what overflows in an
    adapter that serves no row isn't seen."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(4 * seq, 10), (3, 2, 10), (3, 7, 2), (3, 2)]
    x, a, b, scale = (torch.randn(*s, generator=draw, dtype=torch.float64).requires_grad_() for s in sizes)
    index, active = torch.tensor([2, 0, 0, 2]), torch.rand(4 * seq, generator=draw) > 0.3
    with torch.no_grad():
        a[1] = 1e308
    found = []
    for as_one in (False, True):
        monkeypatch.setattr(routing, "_as_one", lambda x, a, as_one=as_one: as_one)
        delta = lora_delta(x, a, b, scale, HardRoute(index, None, active, joint=True))
        found.append((delta, *torch.autograd.grad(delta.square().sum(), (x, a, b, scale))))
        assert not delta[~active].any()
    for apart, together in zip(*found, strict=True):
        assert close(together, apart)


def test_the_kernels_get_what_a_stream_has(empty: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of several links and ranks, side by side in a stream, with tokens that none serves."""
    monkeypatch.setattr(routing, "usable", lambda _: True)
    index = torch.tensor([0, 0, 2, 2, 2]).to(empty.device)
    ends = torch.tensor([32, 32, 80], dtype=torch.int32).to(empty.device)
    sizes = [(1, 80, 32), (3, 5, 32), (3, 24, 5), (3, 5)]
    x, a, b, scale = (torch.randn(size).to(empty.device).requires_grad_() for size in sizes)
    active = torch.rand(80).to(empty.device) > 0.3
    found = []
    for route in (HardRoute(index, ends, active), HardRoute(index, None, active)):
        delta = lora_delta(x.to(empty.dtype), a, b, scale, route)
        found.append((delta, *torch.autograd.grad(delta.float().square().sum(), (x, a, b, scale))))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() < (1e-5 if empty.dtype == torch.float32 else 2e-2) * theirs.norm()


@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2"])
def test_soft_route_is_the_weighted_sum_of_adapters(arch: str) -> None:
    """Against a loop over adapters, on one layer; one-hot weights are a hard route, per row or per token."""
    model = tiny_model(arch, torch.float64).eval()
    chain = Chain(model, config(arch, **(BIAS if arch in WITH_BIAS else {})), seeds=[0, 1, 2])
    randomise(chain)
    bank = next(iter(chain.banks.values()))
    x = torch.randn(4, 6, bank.in_features, dtype=torch.float64)
    weights = torch.rand(4, 6, 3, dtype=torch.float64)
    base = bank.base_layer(x)
    expected = base.clone()
    for expert in range(3):
        delta = x @ bank.lora_A[expert].mT @ bank.lora_B[expert].mT
        if bank.lora_bias is not None:
            delta = delta + bank.lora_bias[expert]
        expected = expected + weights[..., expert, None] * bank.scaling[expert] * delta
    chain.route = SoftRoute(weights)
    assert close(bank(x), expected)
    assert close(
        bank(x.flatten(0, 1)).view_as(expected), expected
    )  # some feed-forward layers get rows and positions flattened
    index = torch.tensor([1, 0, 2, 1])
    tokens = inputs(4)
    chain.route = HardRoute(index)
    hard = model(tokens).logits
    chain.route = SoftRoute(nn.functional.one_hot(index, 3).double())
    assert close(model(tokens).logits, hard)


def test_one_of_many_adapters_is_initialised_as_if_alone() -> None:
    alone = Chain(tiny_model("llama"), config("llama"), seeds=[7])
    among = Chain(tiny_model("llama"), config("llama"), seeds=[3, 7])
    for name, bank in alone.banks.items():
        assert torch.equal(bank.lora_A[0], among.banks[name].lora_A[1])
        assert not torch.equal(bank.lora_A[0], among.banks[name].lora_A[0])
        assert not bank.lora_B.any()


def test_gaussian_a_has_pefts_deviation() -> None:
    model = tiny_model("llama")
    chain = Chain(model, config("llama", r=16, target_modules="all-linear"))
    a = torch.cat([bank.lora_A.detach().flatten() for bank in chain.banks.values()])
    assert abs(float(a.std()) * 16 - 1) < 0.05
    assert abs(float(a.mean())) * 16 < 0.05


def test_adapters_are_float32_over_a_bfloat16_base() -> None:
    model = tiny_model("llama", torch.bfloat16)
    chain = Chain(model, config("llama"))
    randomise(chain)
    logits = model(inputs(2)).logits
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert {p.dtype for p in chain.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in chain.parameters())
    exact = tiny_model("llama", torch.bfloat16).float()
    twin = peft_twin(exact, chain, 0)
    assert (logits.float() - twin(inputs(2)).logits).norm() < 0.05 * logits.float().norm()


class EightBit(nn.Module):
    """A stand-in for a quantised layer: an integer weight, features, a forward of its own."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.register_buffer("qweight", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.get_buffer("qweight").to(x.dtype) * self.scale)


def test_anything_with_features_and_a_forward_can_be_a_base() -> None:
    layer = EightBit(nn.Linear(8, 5))
    bank = LoraBank(layer, 1, Routing())
    bank.extend(torch.randn(1, 3, 8), torch.tensor([2.0]))
    bank.lora_B.data.normal_()
    x = torch.randn(2, 4, 8)
    assert torch.allclose(bank(x), layer(x) + 2 * x @ bank.lora_A[0].mT @ bank.lora_B[0].mT, atol=1e-5)
    assert bank.lora_A.dtype == torch.float32
    assert "floating-point" in str(why_not_mergeable(bank))


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model("llama").eval()
    chain = Chain(model, config("llama", lora_dropout=0.5))
    randomise(chain)
    x = inputs(2)
    assert torch.equal(model(x).logits, model(x).logits)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)


def test_several_adapters_need_a_route() -> None:
    model = tiny_model("llama")
    Chain(model, config("llama"), seeds=[0, 1])
    with pytest.raises(LorachainsError, match="a bank of 2 adapters needs a route"):
        model(inputs(1))


def test_the_output_layer_cannot_tell_adapters_apart() -> None:
    """It sees the answer tokens only, of all rows in one; one adapter doesn't mind."""
    targets = config("llama", target_modules=["q_proj", "lm_head"])
    with pytest.raises(LorachainsError, match=r"takes in the output layer, .* can't tell 2 adapters apart"):
        Chain(tiny_model("llama"), targets, seeds=[0, 1])
    assert "lm_head" in Chain(tiny_model("llama"), targets).banks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"target_modules": ["no_such_layer"]},
            r"adapter.target_modules=\['no_such_layer'\] matches no layer .* q_proj",
        ),
        ({"target_modules": ["embed_tokens"]}, "Embedding, which is no linear layer"),
        ({"modules_to_save": ["lm_head"]}, "adapter.modules_to_save is .* not support"),
        ({"use_dora": True}, "adapter.use_dora is True"),
        ({"rank_pattern": {"q_proj": 2}}, "adapter.rank_pattern"),
        ({"init_lora_weights": "pissa"}, "adapter.init_lora_weights is 'pissa'"),
        ({"lora_dropout": 1.5}, "adapter.lora_dropout is 1.5"),
        ({"lora_dropout": "a"}, "adapter.lora_dropout is 'a'"),
        ({"lora_alpha": float("inf")}, "adapter.lora_alpha is inf"),
        ({"r": True}, "adapter.r is True"),
        ({"task_type": "SEQ_CLS"}, "adapter.task_type is .*: give CAUSAL_LM, or null"),
        ({"layers_to_transform": [7]}, r"with adapter.layers_to_transform=\[7\] matches no layer"),
        ({"lora_bias": "no", "init_lora_weights": True}, "adapter.lora_bias is 'no': give true or false"),
    ],
)
def test_what_a_bank_cannot_do_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LorachainsError, match=message):
        Chain(tiny_model("llama"), config("llama", **fields))


def test_rank_zero_is_refused() -> None:
    settings = config("llama")
    settings.r = 0
    with pytest.raises(LorachainsError, match=r"adapter\.r is 0"):
        Chain(tiny_model("llama"), settings)


def test_pefts_default_targets_are_used_when_none_are_named() -> None:
    chain = Chain(tiny_model("bloom"), LoraConfig(r=2, init_lora_weights="gaussian"))
    assert {name.rsplit(".", 1)[-1] for name in chain.banks} == {"query_key_value"}


def test_targets_cover_all_architectures() -> None:
    assert set(TARGETS) == set(ARCHITECTURES)
