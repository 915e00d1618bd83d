"""Training FLOPs, by the COLA paper's estimator and by the products that training with LoRA makes.

The paper (§6.2, Table 4) reports what HF's Trainer keeps in its state, 6 N a padded token, where N are all parameters
but the embeddings, the live link's among them: two FLOPs a parameter in the forward pass and four in the backward pass.
That is right where all weights are trained. With LoRA the gradients of frozen weights are never computed, so that a
smaller rank saves a larger share of what is computed than of what is estimated.

The other count goes through the matrix products of a training pass, as `torch.utils.flop_counter` does. For a token,
in a layer of `i` inputs and `o` outputs with a link of rank `r` and a ledger of rank `R`:

    forward     2 i o  +  2 (r + R)(i + o)
    backward    2 i o [if a gradient must reach the input]  +  2 i o [if W is trained]
                +  2 (r + R)(i + o) [for A and B]  +  2 (r + R) o  +  2 (r + R) i [if a gradient must reach the input]

The ledger stands beside the live link in one product (`bank.py`), so its gradient is computed too, and dropped; only
with dropout, which makes it a product of its own, it isn't. In `merge` mode R is 0. Attention is counted by the pairs
of tokens that it computes (`pairs`). The output layer reads answer positions alone. What is recomputed in the backward
pass is one forward more, for activation checkpointing as far as PyTorch goes on with it.

Counted is the work of a run as if it were alone on one device: what fills blocks, graphs or the ledger up is not. Left
out are norms, activation functions, softmax, rotary embeddings and the optimizer: no matrix products, or next to none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from lorachains.bank import LoraBank, linear_shape
from lorachains.loads import Load


@dataclass
class LinearCall:
    """A linear layer at work in a training pass.

    Attributes:
        layer: a `LoraBank`, or a layer without adapters.
        head: whether it is the output layer, which reads answer positions alone.
        flows: whether a gradient must reach its input.
        again: whether it is made in the backward pass, to recompute activations.
        ended: recomputation stops once it has all that the backward pass needs.
    """

    layer: nn.Module
    head: bool
    flows: bool
    again: bool
    ended: bool = False


@dataclass(frozen=True)
class AttentionCall:
    """The attention of one decoder layer at work in a training pass.

    Attributes:
        width: of queries and keys, all heads together.
        value_width: of values.
        window: how many tokens a token attends to at most, itself included; `None` for no limit.
        flows: whether gradients must reach queries, keys and values.
        again: see `LinearCall`.
    """

    width: int
    value_width: int
    window: int | None
    flows: tuple[bool, bool, bool]
    again: bool


@dataclass
class Trace:
    """What a training pass does, whatever the texts and the ranks.

    Attributes:
        linear, attention: the calls.
        streams: whether texts are read in one stream; else they are padded to one length.
        kernel: whether attention is one kernel, which leaves out pairs that are masked, and recomputes its weights in
            the backward pass.
        uncounted: weights that are neither a linear layer's nor an embedding's: their products aren't known here.
        chunk: the logits of more answer tokens than that are computed twice (`scoring.py`); `None` if never.
    """

    streams: bool
    kernel: bool
    uncounted: list[str]
    chunk: int | None = None
    linear: list[LinearCall] = field(default_factory=list)
    attention: list[AttentionCall] = field(default_factory=list)


@dataclass(frozen=True)
class Costs:
    """What one adapter's training pass costs with the links of the moment.

    Attributes:
        parameters: N of the paper's estimator.
        token: FLOPs for each token read.
        pair: FLOPs for each pair of tokens that attend, by window.
        answer: FLOPs for each answer token, in the output layer.
        answer_again: FLOPs for each answer token where its logits are computed again.
    """

    trace: Trace
    parameters: int
    token: int
    pair: dict[int | None, int]
    answer: int
    answer_again: int


def costs(model: PreTrainedModel, trace: Trace) -> Costs:
    """The costs with the ranks that the model's banks have now."""
    pair: dict[int | None, int] = {}
    for attention in trace.attention:
        pair[attention.window] = pair.get(attention.window, 0) + attention_flops(attention, trace.kernel)
    head = [call for call in trace.linear if call.head]
    return Costs(
        trace=trace,
        parameters=parameters(model),
        token=sum(linear_flops(call) for call in trace.linear if not call.head),
        pair=pair,
        answer=sum(map(linear_flops, head)),
        answer_again=sum(_forward(call.layer) for call in head),
    )


def parameters(model: PreTrainedModel) -> int:
    """N: all parameters as transformers counts them, but embeddings; the live link's of one adapter, no tied link's."""
    total: int = model.num_parameters(exclude_embeddings=True)
    others = [p[1:].numel() for bank in _banks(model) for p in bank.parameters(recurse=False)]
    return total - sum(others)


def estimated(cost: Costs, load: Load) -> int:
    """The paper's estimator: 6 N a token, padding included, as `Trainer.floating_point_ops` of transformers does it."""
    return 6 * cost.parameters * load.padded


def counted(cost: Costs, load: Load) -> int:
    """The FLOPs of a training pass, forward and backward, over an adapter's texts of a batch."""
    trace, longest = cost.trace, max(load.lengths, default=0)
    lengths = load.lengths if trace.streams else (longest,) * len(load.lengths)
    attending = sum(flops * sum(pairs(n, trace.kernel, window) for n in lengths) for window, flops in cost.pair.items())
    chunked = trace.chunk is not None and load.answers > trace.chunk
    answer = cost.answer + (cost.answer_again if chunked else 0)
    return cost.token * sum(lengths) + attending + answer * load.answers


def pairs(length: int, kernel: bool, window: int | None) -> int:
    """How many pairs of tokens of a text have their attention weight computed.

    All of them by a plain product, which is masked afterwards; in one kernel only those of a token with itself and
    those before it, `window` at most.
    """
    if not kernel:
        return length * length
    reach = min(window or length, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


def linear_flops(call: LinearCall) -> int:
    """FLOPs a token of a linear layer's part in a training pass: the module's formula, of both passes together.

    Of a layer in which a recomputation stops, those until its last product.
    """
    layer = call.layer
    if call.again:
        return _forward(layer) if call.ended else _forward(layer) - _last(layer)
    i, o = linear_shape(layer)
    through = 2 * i * o if call.flows else 0
    if not isinstance(layer, LoraBank):
        trained = 2 * i * o if layer.weight.requires_grad else 0
        return _forward(layer) + through + trained
    live, tied = layer.lora_A.shape[1], _ledger(layer)
    apart = isinstance(layer.dropout, nn.Dropout)
    together = live if apart else live + tied
    link = 2 * together * (i + o) + 2 * together * o + (2 * together * i if call.flows else 0)
    ledger = 2 * tied * (i + o) if apart and call.flows else 0
    return _forward(layer) + through + link + ledger


def attention_flops(call: AttentionCall, kernel: bool) -> int:
    """FLOPs of attention for a pair of tokens: `Q Kᵀ`, the weights times `V`, and the gradients of both.

    A kernel computes all gradients if one is needed, and `Q Kᵀ` once more for them, as FlashAttention-2 does.
    """
    by_key, by_value = 2 * call.width, 2 * call.value_width
    forward = by_key + by_value
    if call.again or not any(call.flows):
        return forward
    if kernel:
        return forward + 3 * by_key + 2 * by_value
    query, key, value = call.flows
    return forward + (query + key) * by_key + (value + (query or key)) * by_value


def _forward(layer: nn.Module) -> int:
    i, o = linear_shape(layer)
    ranks = layer.lora_A.shape[1] + _ledger(layer) if isinstance(layer, LoraBank) else 0
    return 2 * i * o + 2 * ranks * (i + o)


def _last(layer: nn.Module) -> int:
    """The forward pass's last product."""
    i, o = linear_shape(layer)
    if not isinstance(layer, LoraBank):
        return 2 * i * o
    tied = 0 if isinstance(layer.dropout, nn.Dropout) else _ledger(layer)
    return 2 * o * (layer.lora_A.shape[1] + tied)


def _ledger(bank: LoraBank) -> int:
    return 0 if bank.merged else bank.tied


def _banks(model: nn.Module) -> Sequence[LoraBank]:
    return [module for module in model.modules() if isinstance(module, LoraBank)]
