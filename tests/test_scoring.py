"""The loss of the answers is the one that transformers computes from all logits."""

import pytest
import torch
from torch import Tensor

from lorachains.batch import IGNORED, TokenBatch
from lorachains.scoring import answer_logits, answer_losses, logits_after, mean_per_group
from tests.adapters import inputs
from tests.tiny import ARCHITECTURES, tiny_model


def batch(padding: bool) -> tuple[TokenBatch, Tensor]:
    """Three rows of nine tokens with answers of 1, 2 and 4 tokens; with padding, the rows are of other lengths."""
    tokens = inputs(3)
    mask, labels = torch.ones_like(tokens), torch.full_like(tokens, IGNORED)
    for row, (answer, pad) in enumerate([(1, 4), (2, 0), (4, 1)]):
        end = 9 - pad if padding else 9
        labels[row, end - answer : end] = tokens[row, end - answer : end]
        mask[row, end:] = 0
        tokens[row, end:] = 0
    return TokenBatch.of_labels(tokens, mask, labels, torch.zeros(3, dtype=torch.int64)), labels


@pytest.mark.parametrize("padding", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_are_transformers_own(arch: str, padding: bool) -> None:
    model = tiny_model(arch, torch.float64).eval()
    tokens, labels = batch(padding)
    losses = answer_losses(model, tokens)
    assert losses.shape == (7,)
    theirs = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=labels).loss
    # transformers takes the loss in float32
    assert losses.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    full = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    row, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    nll = -full.log_softmax(-1)[row, position, labels[row, position + 1]]
    assert torch.allclose(losses, nll, rtol=1e-12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_changes_no_loss(arch: str) -> None:
    """Each padded row scored alone, without its padding."""
    model = tiny_model(arch, torch.float64).eval()
    tokens, labels = batch(padding=True)
    together = answer_losses(model, tokens)
    for row in range(3):
        length = int(tokens.attention_mask[row].sum())
        alone = TokenBatch.of_labels(
            tokens.input_ids[row : row + 1, :length],
            tokens.attention_mask[row : row + 1, :length],
            labels[row : row + 1, :length],
            torch.zeros(1, dtype=torch.int64),
        )
        assert torch.allclose(answer_losses(model, alone), together[tokens.answer_row == row], rtol=1e-10)


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
    tokens, _ = batch(padding=True)
    model = tiny_model("llama", torch.bfloat16).eval()
    assert answer_logits(model, tokens).dtype == torch.bfloat16
    assert answer_losses(model, tokens).dtype == torch.float32


def test_group_means() -> None:
    means = mean_per_group(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0, 2]), 4)
    assert means.tolist() == [2.0, 0.0, 2.0, 0.0]
