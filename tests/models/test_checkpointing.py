"""With recomputed activations training is the same, in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorachains.batch import pack
from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.graphs import decoder_layers
from lorachains.models import byte_tokenizer, load, tiny
from lorachains.models.checkpointing import checkpoint_layers
from lorachains.packing import hard_route, packs
from lorachains.scoring import answer_losses
from tests.adapters import config, randomise
from tests.batches import texts_of
from tests.tiny import tiny_model

ARCHITECTURES = ["llama", "opt", "gpt2", "bloom"]
TEXTS = texts_of((23, 3), (5, 4), (40, 1), (12, 11), (23, 6))
OWNERS = [2, 0, 2, 0, 1]


def trained(model: PreTrainedModel, arch: str, experts: int, **fields: Any) -> tuple[Tensor, Tensor, int]:
    """The losses of a batch in training mode, their sum's gradient, and the bytes kept for it."""
    chain = Chain(model.train(), config(arch, **fields), seeds=range(experts))
    randomise(chain)
    batch = pack(TEXTS, OWNERS if experts > 1 else None, experts=experts)
    chain.route = hard_route(model, batch)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = answer_losses(model, batch)
    return losses.detach(), chain.differentiate(losses.sum()), sum(kept.values())


def settled(model: PreTrainedModel) -> bool:
    """Whether its decoder layers recompute."""
    return all(layer.gradient_checkpointing for layer in decoder_layers(model))


def recomputing(arch: str, **fields: Any) -> PreTrainedModel:
    model = tiny_model(arch, torch.float64, **fields)
    checkpoint_layers(model)
    return model


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_and_gradients_are_the_same(arch: str, experts: int) -> None:
    """Of texts in one stream and padded (Bloom): a layer runs again with the attention that it ran with."""
    model = recomputing(arch)
    assert packs(model) == (arch != "bloom")
    losses, gradient, kept = trained(model, arch, experts)
    expected, its_gradient, all_kept = trained(tiny_model(arch, torch.float64), arch, experts)
    assert (losses - expected).norm() <= 1e-12 * expected.norm()
    assert (gradient - its_gradient).norm() <= 1e-12 * its_gradient.norm() != 0
    assert kept < 0.6 * all_kept


def test_with_the_depth_only_the_inputs_of_layers_grow() -> None:
    kept = [trained(recomputing("llama", num_hidden_layers=n), "llama", 1)[2] for n in (2, 6)]
    tokens, hidden, bytes_each = sum(len(text.stream) for text in TEXTS), 32, 8
    assert kept[1] - kept[0] == 4 * tokens * hidden * bytes_each


def test_dropout_draws_the_same_numbers_again() -> None:
    losses, gradient, _ = trained(recomputing("llama", attention_dropout=0.3), "llama", 1, lora_dropout=0.3)
    model = tiny_model("llama", torch.float64, attention_dropout=0.3)
    expected, its_gradient, _ = trained(model, "llama", 1, lora_dropout=0.3)
    assert torch.equal(losses, expected)
    assert (gradient - its_gradient).norm() <= 1e-12 * its_gradient.norm()


def test_the_models_own_attention_is_as_before() -> None:
    model = recomputing("llama")
    before = model.config._attn_implementation
    trained(model, "llama", 1)
    assert model.config._attn_implementation == before != "lorachains_packed"


def test_an_architecture_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(
        LorachainsError, match=r"model\.checkpointing is true, but .* LlamaForCausalLM: set it to false"
    ):
        checkpoint_layers(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_way_to_a_model_has_the_setting(checkpointing: bool, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    architecture = {"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
    for base in (
        load(str(tmp_path), checkpointing=checkpointing),
        load("any", checkpointing=checkpointing, random_weights=True, architecture=architecture),
        tiny(checkpointing=checkpointing),
    ):
        assert settled(base.model) == checkpointing
