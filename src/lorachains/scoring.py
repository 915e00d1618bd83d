"""Log-likelihoods of answers, with logits computed only where there is an answer token to predict.

For many answer tokens not even those are kept: the logits of one chunk at a time, computed again in the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lorachains.batch import IGNORED, TokenBatch
from lorachains.packing import packs, read
from lorachains.sharding import sharded

CHUNK = 1024
"""The logits of more answer tokens are never in memory at once, where that can be avoided."""

Head = Callable[[Tensor], Tensor]
"""What makes logits of the last hidden states."""


def answer_losses(model: PreTrainedModel, batch: TokenBatch) -> Float[Tensor, " answers"]:
    """The negative log-likelihood (nats) of each answer token, given all before it; 0 for an ignored one.

    Returns:
        In float32 (float64 for a float64 model), in the order of `batch.targets`.
    """
    if len(batch.targets) <= CHUNK or not ends_in_head(model, batch):
        return _losses(answer_logits(model, batch), batch.targets)
    dropout = any(isinstance(module, nn.Dropout) and module.p for module in model.get_output_embeddings().modules())

    def in_chunks(head: Head, hidden: Tensor) -> Tensor:
        def one(rows: Tensor, targets: Tensor) -> Tensor:
            return _losses(head(rows), targets)

        chunks = zip(hidden[0].split(CHUNK), batch.targets.split(CHUNK), strict=True)
        # The state of the random numbers can't be read while a CUDA graph is recorded.
        losses = [checkpoint(one, *chunk, use_reentrant=False, preserve_rng_state=dropout) for chunk in chunks]
        return torch.cat(losses).view(1, -1, 1)

    with _head_replaced(model, in_chunks):
        return answer_logits(model, batch)[:, 0]


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="none")


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def ends_in_head(model: PreTrainedModel, batch: TokenBatch) -> bool:
    """Whether the output layer's output is the logits, neither capped nor scaled; tried out once.

    `False` for a model that is divided over devices: they gather weights together, and not all of them might try.
    """
    if sharded(model):
        return False
    if model not in _known:
        _known[model] = _try(model, batch)
    return _known[model]


@torch.no_grad()
def _try(model: PreTrainedModel, batch: TokenBatch) -> bool:
    """Whether large and small numbers come out as they left the output layer, in place of one token's logits."""
    sent: list[Tensor] = []

    def numbers(head: Head, hidden: Tensor) -> Tensor:
        logits = head(hidden[:, :1])
        sent.append(torch.linspace(-1e3, 1e3, logits.numel(), device=logits.device).to(logits.dtype).view_as(logits))
        return sent[0].clone()

    training = model.training
    model.eval()  # no dropout: it would move the random state
    try:
        # Compiling the layers for this one pass would take seconds.
        with torch.compiler.set_stance("force_eager"), _head_replaced(model, numbers):
            came = answer_logits(model, batch)
    finally:
        model.train(training)
    return torch.equal(came.double(), sent[0][0].double())


@contextmanager
def _head_replaced(model: PreTrainedModel, function: Callable[[Head, Tensor], Tensor]) -> Iterator[None]:
    """Within, `function` gets the output layer's forward and the hidden states, and gives what stands for logits."""
    head = model.get_output_embeddings()
    own, forward = vars(head).get("forward"), head.forward
    head.forward = lambda hidden: function(forward, hidden)
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def answer_logits(model: PreTrainedModel, batch: TokenBatch) -> Float[Tensor, "answers vocabulary"]:
    """The logits after the token before each answer token, and no others."""
    if packs(model):
        with logits_after(model, batch.positions):
            return read(model, batch).logits[0]
    padded = batch.padded()
    with logits_after(model, padded.positions):
        return model(padded.input_ids, attention_mask=padded.attention_mask, use_cache=False).logits[0]


def pass_over(model: PreTrainedModel, batch: TokenBatch) -> None:
    """The pass over a batch, for what is watched on the way: it makes no logits."""
    nowhere = batch.positions[:0]
    if packs(model):
        with logits_after(model, nowhere):
            read(model, batch)
    else:
        padded = batch.padded()
        with logits_after(model, nowhere):
            model(padded.input_ids, attention_mask=padded.attention_mask, use_cache=False)


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


def mean_per_group(
    values: Float[Tensor, " n"], group: Int[Tensor, " n"], groups: int, targets: Int[Tensor, " n"]
) -> Float[Tensor, " groups"]:
    """The mean of each group's values whose target is not IGNORED; 0 for a group that has none."""
    counted = (targets != IGNORED).to(values.dtype)
    total = values.new_zeros(groups).index_add(0, group, values * counted)
    return total / values.new_zeros(groups).index_add(0, group, counted).clamp(min=1)
