"""Log-likelihoods of answers, with logits computed only where there is an answer token to predict."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorachains.batch import TokenBatch


def answer_losses(model: PreTrainedModel, batch: TokenBatch) -> Float[Tensor, " answers"]:
    """The negative log-likelihood (nats) of each answer token, given all before it.

    Returns:
        In float32 (float64 for a float64 model), in the order of `batch.targets`.
    """
    logits = answer_logits(model, batch)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), batch.targets, reduction="none")


def answer_logits(model: PreTrainedModel, batch: TokenBatch) -> Float[Tensor, "answers vocabulary"]:
    """The logits after the token before each answer token, and no others."""
    with logits_after(model, batch.positions):
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[0]


@contextmanager
def logits_after(model: PreTrainedModel, positions: Int[Tensor, " answers"]) -> Iterator[None]:
    """Within, the model's logits are those after the given tokens only, `(1, answers, vocabulary)`.

    Args:
        positions: `row · seq + position` of each token.
    """

    def select(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1)[positions].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def mean_per_group(values: Float[Tensor, " n"], group: Int[Tensor, " n"], groups: int) -> Float[Tensor, " groups"]:
    """The mean of each group's values; 0 for a group that has none."""
    total = values.new_zeros(groups).index_add(0, group, values)
    return total / values.new_zeros(groups).index_add(0, group, torch.ones_like(values)).clamp(min=1)
