"""Fused layers compute what they compute apart, forward and backward, and stay what they were to all else."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorachains.chain import Chain
from lorachains.fused_linear import FEW, FusedLinear, choose_training, fuse, watched
from lorachains.graphs import decoder_layers
from lorachains.packing import siblings
from lorachains.routing import HardRoute
from tests.adapters import randomise
from tests.tiny import ARCHITECTURES, tiny_model

QKV, GATE_UP = ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]
GROUPS = {"llama": [QKV, GATE_UP], "qwen2": [QKV, GATE_UP], "opt": [QKV]}
"""Of a layer; Bloom and GPT-2 have one weight for queries, keys and values."""
IDS = torch.arange(12).view(2, 6)


def own_name(model: nn.Module, layer: nn.Module) -> str:
    (name,) = (name for name, module in model.named_modules() if module is layer)
    return name.removesuffix(".base_layer").rpartition(".")[2]


def frozen(arch: str, dtype: torch.dtype = torch.float64, **fields: int) -> PreTrainedModel:
    model = tiny_model(arch, dtype, **fields)
    model.requires_grad_(False)
    return model


def chain_of(model: PreTrainedModel, targets: str | list[str] = "all-linear") -> Chain:
    chain = Chain(model, LoraConfig(target_modules=targets, init_lora_weights="gaussian", r=2), (0, 1))
    model.requires_grad_(False)
    for parameter in chain.parameters():
        parameter.requires_grad_()
    randomise(chain)
    chain.route = HardRoute(torch.tensor([1, 0]))
    return chain


def outcome(chain: Chain) -> list[Tensor]:
    """Logits, and the adapters' gradients."""
    logits = chain.model(input_ids=IDS).logits
    return [logits.detach(), *torch.autograd.grad(logits.square().sum(), chain.parameters())]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-10 * other.norm()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_a_fused_model_computes_the_same(arch: str, targets: str) -> None:
    model = tiny_model(arch, torch.float64)
    few = {"bloom": ["query_key_value"], "gpt2": ["c_attn"]}.get(arch, ["q_proj", "v_proj"])
    chain = chain_of(model, few if targets == "some" else targets)
    before = outcome(chain)
    groups = siblings(model)
    assert [[own_name(model, layer) for layer in group] for group in groups] == 2 * GROUPS.get(arch, [])
    names = [name for name, _ in model.named_parameters()]
    fuse(groups)
    assert sum(isinstance(module, FusedLinear) for module in model.modules()) == sum(map(len, groups))
    for tokens in (1, FEW):  # in training as well, and not
        choose_training(model, tokens)
        assert_close(outcome(chain), before)
        with torch.no_grad():
            assert_close([model(input_ids=IDS).logits], before[:1])
    assert [name for name, _ in model.named_parameters()] == names
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    fuse(groups)
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights


@pytest.mark.parametrize(("tokens", "expected"), [(FEW // 128, 2 + 2), (FEW // 128 + 1, 3 + 3)])
def test_one_product_stands_for_each_group(tokens: int, expected: int) -> None:
    """Of gate and up, which make 64 numbers of a token each, and of down; forward, and backward if there is one."""
    model = frozen("llama")
    fuse(siblings(model))
    choose_training(model, tokens)
    mlp, x = model.model.layers[0].mlp, torch.randn(3, 32, dtype=torch.float64, requires_grad=True)

    def products() -> int:
        with torch.profiler.profile() as profile:
            made = mlp(x)
            if made.requires_grad:
                made.sum().backward()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::mm")

    assert products() == expected
    with torch.no_grad():
        assert products() == 2


@pytest.mark.parametrize("arch", GROUPS)
def test_fused_layers_are_compiled_once_for_all(arch: str) -> None:
    """What layers share while they run is no part of what makes two of them differ."""
    compiled = []
    for fused in (False, True):
        torch._dynamo.reset()
        model = frozen(arch, num_hidden_layers=5)
        before = model(input_ids=IDS).logits
        if fused:
            fuse(siblings(model))
            choose_training(model, tokens=1)
        counter = CompileCounterWithBackend("aot_eager")
        for layer in decoder_layers(model):
            layer.compile(dynamic=True, backend=counter, fullgraph=True)
        for width in (6, 4):
            assert_close([model(input_ids=IDS[:, :width]).logits], [before[:, :width]])
        compiled.append(counter.frame_count)
    torch._dynamo.reset()
    assert compiled[0] == compiled[1] < 5


@torch.no_grad()
def test_a_merge_into_a_weight_reaches_the_product() -> None:
    chain = Chain(frozen("llama"), LoraConfig(target_modules=["v_proj"], r=2))
    randomise(chain)
    expected = chain.model(input_ids=IDS).logits
    fuse(siblings(chain.model))
    chain.tie(1, "merge")
    chain.extend()
    assert (chain.model(input_ids=IDS).logits - expected).norm() <= 1e-12 * expected.norm()


@torch.no_grad()
def test_a_layer_called_with_another_tensor_reads_that() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, size, dtype=torch.float64).requires_grad_(False) for size in (3, 5, 2)]
    plain = deepcopy(layers)
    fuse([layers])
    x, y = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    for place, read in ((1, x), (0, x), (1, y), (2, x), (0, y), (2, y), (2, y)):
        assert torch.allclose(layers[place](read), plain[place](read), rtol=1e-12, atol=0)


def test_a_model_that_is_moved_or_converted_is_a_plain_one() -> None:
    model = frozen("opt", torch.float32)
    logits = model(input_ids=IDS).logits
    fuse(siblings(model))
    assert any(isinstance(module, FusedLinear) for module in model.modules())
    model.double()
    assert not any(isinstance(module, FusedLinear) for module in model.modules())
    assert torch.allclose(model(input_ids=IDS).logits.float(), logits, atol=1e-5)
    fuse(siblings(model))  # anew, from where the weights are now
    assert any(isinstance(module, FusedLinear) for module in model.modules())
    assert torch.allclose(model(input_ids=IDS).logits.float(), logits, atol=1e-5)


def test_what_is_saved_is_the_plain_model(tmp_path: Path) -> None:
    model = frozen("llama", torch.float32)
    fuse(siblings(model))
    assert any(isinstance(module, FusedLinear) for module in model.modules())
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, mine), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(mine, other)


def test_layers_that_train_or_differ_stay_apart() -> None:
    def linear(size: int = 3, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
        return nn.Linear(4, size, bias, dtype=dtype).requires_grad_(False)

    class Other(nn.Linear):
        pass

    trained = linear().requires_grad_()
    for odd in (trained, linear(dtype=torch.float64), linear(bias=False), Other(4, 3).requires_grad_(False)):
        layers = [linear(), odd]
        fuse([layers])
        assert not any(isinstance(layer, FusedLinear) for layer in layers)


def test_layers_that_are_called_twice_or_share_a_weight_are_left_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.too, self.twice, self.tied = (nn.Linear(4, 4) for _ in range(4))
            self.head = nn.Linear(4, 4)
            self.head.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            once = self.once(x) + self.too(x)
            y = once.sin()
            return self.twice(y) + self.twice(once) + self.tied(y) + self.head(y)

    model = Model()
    with watched(model) as groups:
        model(torch.randn(2, 4))
    assert groups == [[model.once, model.too]]
