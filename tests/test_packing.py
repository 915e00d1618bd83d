"""Texts in one stream are the texts alone: losses, gradients, and nothing of one text in another."""

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.packing import hard_route, packs
from lorachains.scoring import answer_losses
from tests.adapters import config, peft_gradients, peft_twin, randomise
from tests.batches import answered, texts_of
from tests.tiny import tiny_model

TEXTS = texts_of((23, 3), (5, 4), (40, 1), (12, 11), (23, 6))
OWNERS = [2, 0, 2, 0, 2]
"""The adapter of each text; the second adapter has none."""
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
}
READERS: list[tuple[str, dict[str, Any]]] = [
    *((arch, {}) for arch in ("llama", "qwen2", "opt", "gpt2")),
    *SLIDING.items(),
]
PADDED: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("bloom", {}, torch.float64),  # ALiBi
    ("gemma2", {"head_dim": 8}, torch.float32),  # a softcap on the attention's weights
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, torch.float64),  # a convolution over the sequence
    ("mamba", {"state_size": 4}, torch.float64),  # recurrent
]


def losses_alone(model: PreTrainedModel | PeftModel, text: Tokens) -> Tensor:
    """From the model's own reading of the text."""
    ids, labels = torch.tensor([text.input_ids]), torch.tensor(text.labels)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return F.cross_entropy(logits, labels[1:], reduction="none")[labels[1:] != IGNORED]


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [("sdpa", torch.float64, 1e-10), ("eager", torch.float32, 1e-5)],  # eager attention has its softmax in float32
    ids=["sdpa", "eager"],
)
@pytest.mark.parametrize(("arch", "fields"), READERS, ids=lambda value: value if isinstance(value, str) else "")
def test_losses_and_gradients_are_those_of_each_text_alone(
    arch: str, fields: dict[str, Any], attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Of three adapters in one stream, against PEFT's models in the architecture's own attention, one text a time."""
    base = tiny_model(arch, dtype, attn_implementation=attention, **fields).eval()
    settings = config(arch) if arch in ("opt", "gpt2") else config("llama")
    chain = Chain(copy.deepcopy(base), settings, seeds=[0, 1, 2])
    assert packs(chain.model)
    randomise(chain)
    batch = pack(TEXTS, OWNERS, experts=3)
    chain.route = hard_route(chain.model, batch)
    losses = answer_losses(chain.model, batch)
    losses.sum().backward()
    for expert in (0, 2):
        twin = peft_twin(copy.deepcopy(base), chain, expert)
        for i in (i for i, owner in enumerate(OWNERS) if owner == expert):
            alone = losses_alone(twin, TEXTS[i])
            assert close(losses[batch.candidate == i], alone, tolerance)
            alone.sum().backward()
        for name, gradient in peft_gradients(twin).items():
            layer, _, key = name.rpartition(".")
            assert close(getattr(chain.banks[layer], key).grad[expert], gradient, tolerance), name
    assert all(not p.grad[1].any() for p in chain.parameters() if p.grad is not None)


@pytest.mark.parametrize(("arch", "fields", "dtype"), PADDED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_architecture_that_cannot_tell_texts_apart_reads_them_padded(
    arch: str, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    model = tiny_model(arch, dtype, **fields).eval()
    assert not packs(model)
    batch = pack(TEXTS)
    losses = answer_losses(model, batch)
    for i, text in enumerate(TEXTS):
        assert close(losses[batch.candidate == i], losses_alone(model, text), 1e-6)


@pytest.mark.parametrize("arch", SLIDING)
def test_windows_make_a_difference_here(arch: str) -> None:
    """Else the tests above would say nothing about them."""
    fields = SLIDING[arch]
    near = losses_alone(tiny_model(arch, torch.float64, **fields).eval(), TEXTS[0])
    far = losses_alone(tiny_model(arch, torch.float64, **fields | {"sliding_window": 64}).eval(), TEXTS[0])
    assert not close(near, far, 1e-6)


def changed(text: Tokens) -> Tokens:
    """With another token before the answer."""
    ids, answer = list(text.input_ids), sum(label != IGNORED for label in text.labels)
    ids[-answer - 1] += 1
    return answered(ids, answer)


@pytest.mark.parametrize(("arch", "fields"), READERS, ids=lambda value: value if isinstance(value, str) else "")
def test_no_text_sees_another(arch: str, fields: dict[str, Any]) -> None:
    """The losses of all other texts stay the same bit for bit."""
    model = tiny_model(arch, torch.float64, **fields).eval()

    def losses(texts: list[Tokens]) -> list[Tensor]:
        batch = pack(texts)
        found = answer_losses(model, batch).detach()
        return [found[batch.candidate == i] for i in range(len(texts))]

    before = losses(TEXTS)
    for i in range(len(TEXTS)):
        after = losses([changed(text) if j == i else text for j, text in enumerate(TEXTS)])
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [j != i for j in range(len(TEXTS))]


def test_the_order_of_texts_is_of_no_account() -> None:
    model = tiny_model("llama", torch.float64).eval()

    def losses(order: list[int]) -> dict[int, Tensor]:
        batch: TokenBatch = pack([TEXTS[i] for i in order])
        found = answer_losses(model, batch)
        return {i: found[batch.candidate == place] for place, i in enumerate(order)}

    ours, theirs = losses([0, 1, 2, 3, 4]), losses([3, 0, 4, 2, 1])
    assert all(close(ours[i], theirs[i], 1e-12) for i in ours)


def test_dropout_of_attention_acts_in_training_only() -> None:
    model = tiny_model("llama", attention_dropout=0.5).train()
    batch = pack(TEXTS)
    assert packs(model)
    assert model.training
    assert not torch.equal(answer_losses(model, batch), answer_losses(model, batch))
    model.eval()
    assert torch.equal(answer_losses(model, batch), answer_losses(model, batch))


def test_the_models_own_attention_is_as_before() -> None:
    model = tiny_model("llama").eval()
    before = model.config._attn_implementation
    answer_losses(model, pack(TEXTS))
    assert model.config._attn_implementation == before != "lorachains_packed"
