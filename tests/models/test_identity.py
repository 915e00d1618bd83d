import pytest
import torch
from torch import Tensor, nn

from lorachains.models import fingerprint
from tests.tiny import ARCHITECTURES, tiny_model


class Wrapped(nn.Module):
    """A linear layer with an adapter around it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Parameter(torch.ones(1, 2, base_layer.in_features))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_same_weights_in_another_dtype_agree(arch: str) -> None:
    assert fingerprint(tiny_model(arch)) == fingerprint(tiny_model(arch).bfloat16())


def test_adapters_do_not_count() -> None:
    model = tiny_model("llama")
    bare = fingerprint(model)
    attention = model.model.layers[0].self_attn
    attention.q_proj = Wrapped(attention.q_proj)
    assert fingerprint(model) == bare


def test_other_weights_shapes_or_names_differ() -> None:
    prints = [fingerprint(tiny_model(arch, seed=seed)) for arch in ARCHITECTURES for seed in (0, 1)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_every_parameter_counts(name: str) -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    parameter: Tensor = model.get_parameter(name)
    with torch.no_grad():
        parameter.mul_(1.5)
    assert fingerprint(model) != before
