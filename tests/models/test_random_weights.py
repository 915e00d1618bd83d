from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer, fingerprint, load, random_llm, tiny

SMALL_OPT = {
    "model_type": "opt",
    "vocab_size": 300,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("text", ["plain", "é 日本 😀", "<pad> is not special enough\n\t  ", ""])
def test_text_survives_the_byte_tokenizer(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_byte_tokenizer_has_one_token_a_byte() -> None:
    assert len(byte_tokenizer()("é日").input_ids) == len("é日".encode())


def test_tiny_depends_on_its_own_seed_only() -> None:
    torch.manual_seed(1)
    first, drawn = tiny(seed=3), torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn, "building a model must not move the global random state"
    assert fingerprint(first.model) == fingerprint(tiny(seed=3).model) != fingerprint(tiny(seed=4).model)


def test_tiny_generates() -> None:
    lm = tiny()
    prompt = lm.tokenizer("ab", return_tensors="pt")
    model: Any = lm.model
    generated = model.generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert generated.shape == (1, 5)
    assert lm.model.config.use_cache is False


def test_random_weights_load_nothing() -> None:
    lm = load("facebook/opt-1.3b", random_weights=True, architecture=SMALL_OPT, dtype="bfloat16")
    assert (lm.name, lm.model.dtype, lm.model.config.model_type) == ("facebook/opt-1.3b", torch.bfloat16, "opt")
    assert lm.model(**lm.tokenizer("ab", return_tensors="pt")).logits.shape == (1, 2, 300)


@pytest.mark.parametrize("architecture", [None, {}, {"hidden_size": 32}, {"model_type": "no-such-type"}])
def test_architecture_that_names_no_model(architecture: dict[str, object] | None) -> None:
    with pytest.raises(LorachainsError, match=r"model\.architecture is"):
        random_llm("some-model", architecture=architecture)


@pytest.mark.parametrize(("config", "millions"), [("opt-1.3b", 1315.8), ("llama2-7b", 6738.4)])
def test_architectures_in_conf_have_the_published_size(config: str, millions: float) -> None:
    architecture: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{config}.yaml").architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
