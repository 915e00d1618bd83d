"""How a model reads a stream of texts: attention within each text, and the test of whether an architecture can do it.

The attention is registered with transformers under a name of its own and takes its keyword arguments for
variable-length attention (`cu_seq_lens_q`, `max_length_q`). On CUDA in half precision it is one kernel over all texts,
`segment_attention`, or PyTorch's flash attention where texts are long or attend to others as well; else that of
`padded_attention`, over texts of similar length side by side.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, Cache, PreTrainedModel

from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.padded_attention import Groups, attend, grouped
from lorachains.routing import HardRoute, Route
from lorachains.segment_attention import segment_attention, takes

log = logging.getLogger(__name__)

PACKED = "lorachains_packed"
_HALF = (torch.bfloat16, torch.float16)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads read dim"],
    value: Float[Tensor, "1 kv_heads read dim"],
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    keys: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    groups: Groups | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """Causal attention of each segment of the stream to itself, and to what else is among its keys.

    Args:
        keys: where each segment's keys are in the stream, the last of them its own tokens; `None` for those alone.
        cu_seq_lens_k: where each segment's keys begin in `keys`.
        groups: the segments and their keys, where no one kernel takes them; what is said of them before is not read.

    Raises:
        NotImplementedError: a kind of attention that is not known here.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError
    sharing = query.shape[1] // key.shape[1]
    if groups is not None:
        key, value = _for_each_head(key, sharing), _for_each_head(value, sharing)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        q, k, v = (t.squeeze(0) for t in (query, key, value))
        return attend(q, k, v, groups, scale, dropout, sliding_window).unsqueeze(0), None
    if keys is not None:
        key, value = key.index_select(2, keys), value.index_select(2, keys)
    q, k, v = (_in_half(t).squeeze(0).transpose(0, 1) for t in (query, key, value))  # `[0]`'s gradient is a copy
    if keys is None and takes(q, v, max_length_q):
        return segment_attention(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window).unsqueeze(0), None
    k, v = _for_each_head(k, sharing), _for_each_head(v, sharing)
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    bounds = cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k
    out = varlen_attn(q, k, v, cu_seq_lens_q, bounds, max_length_q, max_length_q, scale=scaling, window_size=window)
    assert isinstance(out, Tensor)
    return out.unsqueeze(0), None


def _for_each_head(tensor: Tensor, sharing: int) -> Tensor:
    """Keys or values, with their heads in the second dimension, for each of the heads that share them."""
    return tensor if sharing == 1 else tensor.repeat_interleave(sharing, 1)


def _in_half(tensor: Tensor) -> Tensor:
    """As the kernel takes it: where precision is mixed, what rotary positions have turned is in float32."""
    return tensor.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else tensor


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Within, the model attends in another way."""
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before


def read(model: PreTrainedModel, batch: TokenBatch, cache: Cache | None = None) -> Any:
    """The model's output on a stream; its tensors have one row.

    Args:
        cache: of what was read before, with which the batch's keys begin. The stream's own keys and values are added.
    """
    layout: dict[str, Any] = {"cu_seq_lens_q": batch.bounds, "max_length_q": batch.longest}
    if batch.keys is not None:
        layout |= {"keys": batch.keys, "cu_seq_lens_k": batch.key_bounds}
    if not one_kernel(model):
        layout["groups"] = grouped(batch.lengths, batch.key_lengths or batch.lengths, batch.keys, model.device)
    with attention(model, PACKED):
        return model(
            input_ids=batch.input_ids.unsqueeze(0), position_ids=batch.position_ids.unsqueeze(0),
            past_key_values=cache, use_cache=cache is not None, **layout,
        )  # fmt: skip


def one_kernel(model: PreTrainedModel) -> bool:
    """Whether all texts of a stream are attended to in one kernel, which has no dropout."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    return model.device.type == "cuda" and dtype in _HALF and not (model.training and _attention_dropout(model))


def _attention_dropout(model: PreTrainedModel) -> float:
    names = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    return max(float(getattr(model.config, name, None) or 0) for name in names)


def hard_route(
    model: PreTrainedModel, batch: TokenBatch, served: Sequence[int] | None = None, joint: bool = False
) -> Route:
    """The route of a batch in the layout in which the model reads it.

    Args:
        served: which of the bank's adapters the batch's are, if they aren't all.
        joint: see `HardRoute`.
    """
    if batch.adapters is None and batch.active is None and served is None:
        return None
    layout = batch if packs(model) else batch.padded()
    adapters = batch.input_ids.new_zeros(1) if layout.adapters is None else layout.adapters
    for tensor in (adapters, layout.active):
        if tensor is not None and tensor.is_cuda:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)  # a compiled layer takes what a module holds to be of one size
    if served is not None:
        return HardRoute(torch.tensor(served, device=adapters.device)[adapters], None, layout.active, joint)
    return HardRoute(adapters, batch.ends if layout is batch else None, layout.active, joint)


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def packs(model: PreTrainedModel) -> bool:
    """Whether the model gives texts in a stream the logits that it gives them one below the other; tried out once."""
    if model not in _known:
        _known[model] = _try(model)
        if not _known[model]:
            log.info("%s can't read texts in one stream: they are padded to one length", type(model).__name__)
    return _known[model]


@torch.no_grad()
def _try(model: PreTrainedModel) -> bool:
    known = {"full_attention", "sliding_attention"} >= set(getattr(model.config, "layer_types", None) or ())
    chunked = getattr(model.config, "attention_chunk_size", None)  # too long for a trial to notice
    if model.get_output_embeddings() is None or not getattr(model, "_supports_attention_backend", False):
        return False
    if not known or chunked:
        return False
    ids = [[5, 9, 13, 4], [7, 3, 11, 17, 6]]
    batch = pack([Tokens(text, text) for text in ids]).to(model.device)
    padded = batch.padded()
    training = model.training
    model.eval()
    try:
        ours = read(model, batch).logits[0, batch.positions]
    except (NotImplementedError, TypeError):
        return False
    finally:
        model.train(training)
    model.eval()
    theirs = model(padded.input_ids, attention_mask=padded.attention_mask, use_cache=False).logits
    model.train(training)
    theirs = theirs.flatten(0, 1)[padded.positions]
    return bool((ours - theirs).double().norm() <= _TOLERANCE[ours.dtype] * theirs.double().norm())
