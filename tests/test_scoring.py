"""The loss of the answers is the one that transformers computes from all logits of each text."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorachains import scoring
from lorachains.batch import IGNORED, pack
from lorachains.chain import Chain
from lorachains.packing import hard_route
from lorachains.scoring import answer_logits, answer_losses, ends_in_head, logits_after, mean_per_group
from tests.adapters import config, inputs, randomise
from tests.batches import texts_of
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model

TEXTS = texts_of((9, 1), (5, 2), (8, 4), (2, 1))
"""The last one is an answer after a single token."""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_are_transformers_own(arch: str) -> None:
    """Of each text alone."""
    model = tiny_model(arch, torch.float64).eval()
    batch = pack(TEXTS)
    losses = answer_losses(model, batch)
    assert losses.shape == (8,)
    for i, text in enumerate(TEXTS):
        ids, labels = torch.tensor([text.input_ids]), torch.tensor([text.labels])
        mine = losses[batch.candidate == i]
        # transformers takes the loss in float32
        assert mine.mean().item() == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-6)
        (places,) = (labels[0, 1:] != IGNORED).nonzero(as_tuple=True)
        nll = -model(input_ids=ids).logits[0].log_softmax(-1)[places, labels[0, places + 1]]
        assert torch.allclose(mine, nll, rtol=1e-10)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_the_full_ones_at_their_places(arch: str) -> None:
    model = tiny_model(arch, torch.float64).eval()
    tokens = inputs(2)
    full = model(input_ids=tokens).logits.flatten(0, 1)
    positions = torch.tensor([8, 0, 17, 8])
    with logits_after(model, positions):
        some = model(input_ids=tokens).logits[0]
    assert torch.allclose(some, full[positions], rtol=1e-12)
    assert model(input_ids=tokens).logits.shape == (2, 9, full.shape[-1])  # as before


def test_the_model_is_as_before_also_after_an_error() -> None:
    model = tiny_model("llama").eval()
    with pytest.raises(KeyError), logits_after(model, torch.tensor([0])):
        raise KeyError
    assert model(input_ids=inputs(2)).logits.shape[:2] == (2, 9)


def test_losses_of_a_half_precision_model_are_float32() -> None:
    batch = pack(TEXTS)
    model = tiny_model("llama", torch.bfloat16).eval()
    assert answer_logits(model, batch).dtype == torch.bfloat16
    assert answer_losses(model, batch).dtype == torch.float32


def test_group_means_leave_out_what_is_ignored() -> None:
    values, group, targets = torch.tensor([1.0, 2.0, 3.0, 9.0, 9.0]), torch.tensor([2, 0, 2, 2, 1]), torch.arange(5)
    targets[3:] = IGNORED
    assert mean_per_group(values, group, 4, targets).tolist() == [2.0, 0.0, 2.0, 0.0]


def trained(model: PreTrainedModel, arch: str, experts: int = 1, **fields: Any) -> tuple[Tensor, Tensor, set[int]]:
    """The losses of a batch in training mode, their sum's gradient, and for how many tokens logits are kept for it."""
    chain = Chain(model.train(), config(arch, **fields), seeds=range(experts))
    randomise(chain)
    batch = pack(TEXTS, [2, 0, 2, 0] if experts > 1 else None, experts=experts)
    chain.route = hard_route(model, batch)
    kept: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (VOCAB_SIZE,) and tensor.shape[0] <= len(batch.targets):
            kept.add(tensor.shape[0])
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = answer_losses(model, batch)
    return losses.detach(), chain.differentiate(losses.sum()), kept


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_chunks_give_the_losses_and_gradients_of_the_whole(
    arch: str, experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keep no logits."""
    expected, its_gradient, all_kept = trained(tiny_model(arch, torch.float64), arch, experts)
    monkeypatch.setattr(scoring, "CHUNK", 3)
    losses, gradient, kept = trained(tiny_model(arch, torch.float64), arch, experts)
    assert len(losses) == 8
    assert (losses - expected).norm() <= 1e-12 * expected.norm()
    assert (gradient - its_gradient).norm() <= 1e-12 * its_gradient.norm() != 0
    assert (all_kept, kept) == ({8}, set())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_chunks_of_an_output_layer_with_an_adapter(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same chunks with all logits kept: dropout draws the same numbers again."""
    monkeypatch.setattr(scoring, "CHUNK", 3)
    fields: dict[str, Any] = {"target_modules": ["q_proj", "lm_head"], "lora_dropout": dropout}
    losses, gradient, _ = trained(tiny_model("llama", torch.float64), "llama", **fields)
    monkeypatch.setattr(scoring, "checkpoint", lambda function, *args, **_: function(*args))
    expected, its_gradient, _ = trained(tiny_model("llama", torch.float64), "llama", **fields)
    assert torch.equal(losses, expected)
    assert (gradient - its_gradient).norm() <= 1e-12 * its_gradient.norm() != 0


@pytest.mark.parametrize(
    ("arch", "fields"),
    [
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
    ],
    ids=["capped", "scaled", "divided"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_changed_behind_the_output_layer_are_taken_whole(
    arch: str, fields: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_model(arch, dtype, **fields).eval(), pack(TEXTS)
    expected = answer_losses(model, batch)
    monkeypatch.setattr(scoring, "CHUNK", 3)
    assert not ends_in_head(model, batch)
    assert torch.equal(answer_losses(model, batch), expected)


def test_trying_the_model_out_leaves_no_trace() -> None:
    model, batch = tiny_model("llama", attention_dropout=0.5).train(), pack(TEXTS)
    torch.manual_seed(0)
    before = answer_losses(model, batch)
    torch.manual_seed(0)
    assert ends_in_head(model, batch)
    assert model.training
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(answer_losses(model, batch), before)
