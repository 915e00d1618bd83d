"""The merged model against `W + ΔW` in float64, and loaded again against what the chain and PEFT compute."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.exported import ExportedChain
from lorachains.full_model import merge_in_memory
from lorachains.models import LanguageModel, byte_tokenizer, load
from lorachains.peft_format import read_adapter
from lorachains.transfer import export
from tests.adapters import ARCH_AND_FIELDS, config, inputs, randomise
from tests.tiny import tiny_model


def chain_of(model: PreTrainedModel, arch: str, **fields: Any) -> Chain:
    """Two links, of 4 and 3 ranks, over the model."""
    chain = Chain(model.eval(), config(arch, **fields))
    randomise(chain, 1)
    chain.tie(10)
    chain.extend(3)
    randomise(chain, 2)
    return chain


def base(model: PreTrainedModel) -> LanguageModel:
    return LanguageModel(model, byte_tokenizer(), "some/base")


def merged_weights(chain: ExportedChain, model: PreTrainedModel) -> dict[str, Tensor]:
    """By the formula, in float64."""
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name, factors in chain.layers.items():
        update = chain.scale * factors.b.double() @ factors.a.double()
        state[f"{name}.weight"] = state[f"{name}.weight"] + (update.T if model.config.model_type == "gpt2" else update)
        if factors.bias is not None:
            state[f"{name}.bias"] = state[f"{name}.bias"] + chain.scale * factors.bias.double().sum(0)
    return state


@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
def test_the_merged_model_is_the_chain(arch: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model, x = tiny_model(arch), inputs(3)
    chain = chain_of(copy.deepcopy(model), arch, **fields)
    exported = export(chain, "some/base", "0123")
    assert merge_in_memory(exported, base(copy.deepcopy(model)), tmp_path) == 0
    loaded = load(str(tmp_path), dtype="float32")
    assert (loaded.model.eval()(x).logits - chain.model(x).logits).abs().max() < 1e-4
    expected = merged_weights(exported, model)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.allclose(tensor.double(), expected[name], atol=1e-6), name
    assert loaded.tokenizer.encode("a word") == byte_tokenizer().encode("a word")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.use_cache


def test_bfloat16_rounds_once_and_says_what_it_lost(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16)
    chain = chain_of(copy.deepcopy(model), "llama")
    for bank in chain.banks.values():
        bank.lora_B.data *= 1e-2
        bank.ledger_B *= 1e-2
    exported = export(chain, "some/base", "0123")
    lost = merge_in_memory(exported, base(copy.deepcopy(model)), tmp_path)
    expected, before = merged_weights(exported, model), model.state_dict()
    error = update = 0.0
    for name, tensor in load(str(tmp_path), dtype="bfloat16").model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name].to(torch.float32).to(torch.bfloat16)), name
        error += float((tensor.double() - expected[name]).square().sum())
        update += float((expected[name] - before[name].double()).square().sum())
    assert lost == pytest.approx((error / update) ** 0.5, rel=1e-4)
    assert lost > 0.01


@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2"])
def test_an_output_layer_tied_to_the_embeddings_gets_a_weight_of_its_own(arch: str, tmp_path: Path) -> None:
    model, x = tiny_model(arch, tie_word_embeddings=True), inputs(3)
    name = next(name for name, p in model.named_parameters() if p is model.get_output_embeddings().weight)
    embeddings = model.state_dict()[name].clone()
    chain = chain_of(copy.deepcopy(model), arch, target_modules=["lm_head"])
    merge_in_memory(export(chain, "some/base", "0123"), base(model), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.state_dict()[name], embeddings)
    assert (loaded(x).logits - chain.model(x).logits).abs().max() < 1e-4


@pytest.mark.parametrize(("arch", "whole"), [("llama", "norm"), ("opt", "lm_head"), ("gpt2", "wte")])
def test_modules_that_peft_saves_whole_replace_the_bases(arch: str, whole: str, tmp_path: Path) -> None:
    """Also one of two that were tied: PEFT trains a copy."""
    model, x = tiny_model(arch), inputs(3)
    twin = get_peft_model(copy.deepcopy(model), config(arch, modules_to_save=[whole])).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
                parameter.add_(0.1 * noise)
    twin.save_pretrained(str(tmp_path / "adapter"))
    merge_in_memory(read_adapter(tmp_path / "adapter"), base(copy.deepcopy(model)), tmp_path / "full")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval()
    again = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    assert (loaded(x).logits - again(x).logits).abs().max() < 1e-4
    assert (loaded(x).logits - tiny_model(arch).eval()(x).logits).abs().max() > 1e-2


def test_another_model_is_refused(tmp_path: Path) -> None:
    exported = export(chain_of(tiny_model("llama"), "llama"), "some/base", "0123")
    with pytest.raises(LorachainsError, match="which the model lacks: give it its own base"):
        merge_in_memory(exported, base(tiny_model("gpt2")), tmp_path)
    with pytest.raises(LorachainsError, match=r"of another shape than \(16, 16\): give it its own base"):
        merge_in_memory(exported, base(tiny_model("llama", hidden_size=16)), tmp_path)
    biased = export(chain_of(tiny_model("opt"), "opt", lora_bias=True, init_lora_weights=True), "some/base", "0123")
    with pytest.raises(LorachainsError, match=r"changes .*bias, which the model lacks"):
        merge_in_memory(biased, base(tiny_model("opt", enable_bias=False)), tmp_path)
    assert not any(tmp_path.iterdir())
