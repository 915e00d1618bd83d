"""The decode step: the tensors that it works on, and the CUDA graph over them."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from lorachains.generation.sampling import Sampling
from lorachains.generation.serving import Served
from lorachains.memory import own_workspaces
from lorachains.prefill import Prefill

_WARM_UP = 3  # eager steps before a graph is captured
_OF_THE_HOST = ("_local_scalar_dense", "nonzero", "lift_fresh")  # `.item()`, boolean indexing, `torch.tensor(…)`


class Lane:
    """What all batches of one shape share.

    Args:
        length: of the cache; a prompt and its new tokens fit in.
        static: whether the cache has that size from the start, as a graph needs it.
        eos: the tokens that end a text.
        served: the adapters of the batch under way, if the banks don't follow a route.

    Attributes:
        out: `(rows, length)` the new tokens.
        done: `(rows,)` whether a row has ended; what it takes after that is of no meaning.
    """

    def __init__(
        self, model: PreTrainedModel, rows: int, length: int, static: bool, eos: Sequence[int], served: Sequence[Served]
    ):
        self.model, self.length, self.static, self.served = model, length, static, served
        self.accepted = inspect.signature(model.forward).parameters  # Bloom takes no positions
        self.cache: Cache | None = None
        device: torch.device = model.device
        self.eos = torch.tensor(eos, dtype=torch.long, device=device)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros_like(self.token)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.mask, self.out = self.token.repeat(1, length), self.token.repeat(1, length)
        self.uniform = torch.zeros(rows, length, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.sampling: Sampling | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager = self.seen = 0

    def clear(self) -> None:
        """Makes room for other prompts."""
        self._empty_cache()
        self.seen = 0
        for tensor in (self.mask, self.column, self.done):
            tensor.zero_()

    def read(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        """Reads prompts, or parts of them behind those that were read, padded on the left."""
        self._logits(*self._placed(prompts, pad))

    def take(self, prefill: Prefill, lengths: Sequence[int]) -> None:
        """Takes over what was read of the prompts: so many first tokens of each."""
        self._placed([[0] * length for length in lengths], 0)
        assert self.cache is not None
        for layer, (keys, values) in enumerate(prefill.rows(lengths)):
            self.cache.update(keys, values, layer)

    def begin(self, prompts: Sequence[Sequence[int]], pad: int, sampling: Sampling | None, steps: int) -> None:
        """Reads the prompts, or the rest of them, and takes each row's first token of at most `steps`."""
        self.sampling = sampling
        if sampling is not None:
            self.uniform[:, :steps] = sampling.uniform(steps).to(self.uniform.device)
        ids, positions = self._placed(prompts, pad)
        self.position.copy_(positions[:, -1:])
        self._next(ids, positions)
        self.mask[:, self.seen :] = 1  # what is yet to come is hidden by causality

    def _placed(self, parts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
        """Makes the mask show parts of the prompts, one below the other; their tokens and places, `(rows, width)`."""
        width, begin = max(map(len, parts)), self.seen
        ids = torch.tensor([[pad] * (width - len(part)) + list(part) for part in parts])
        shown = torch.tensor([[0] * (width - len(part)) + [1] * len(part) for part in parts])
        self.seen += width
        self.mask[:, begin : self.seen] = shown.to(self.mask.device)
        positions = (self.mask[:, : self.seen].cumsum(1) - 1).clamp(min=0)[:, begin:]
        return ids.to(self.token.device), positions

    def advance(self, graphs: bool) -> None:
        """Takes each row's next token. With `graphs` the first steps are the warm-up, then one is captured."""
        if self.graph is None and (not graphs or self.eager < _WARM_UP):
            self.eager, self.seen = self.eager + 1, self.seen + 1
            self._next(self.token, self.position)
            return
        if self.graph is None:
            self.graph = self._captured()
        self.graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that pins a DataLoader's batches may go on.
        capture = torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local")
        # Autocast's copies of weights, which it keeps till its end, would be gone at the next replay.
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False), own_workspaces(), capture:
            self._next(self.token, self.position)
        return graph

    def _empty_cache(self) -> None:
        if not self.static:
            self.cache = DynamicCache(config=self.model.config)
        elif self.cache is None:
            self.cache = StaticCache(config=self.model.config, max_cache_len=self.length)
            # Sliding windows get the whole length, too: their own layers count on the host, which no replay does.
            self.cache.layers = [StaticLayer(max_cache_len=self.length) for _ in self.cache.layers]
        else:
            self.cache.reset()  # to zeros: a NaN left by another batch would get through the mask

    def _next(self, ids: Int64[Tensor, "rows seq"], positions: Int64[Tensor, "rows seq"]) -> None:
        """Reads tokens and takes the next, without a word to the host."""
        logits = self._logits(ids, positions)
        if self.sampling is None:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = self.sampling.draw(logits, self.uniform.index_select(1, self.column))
        self.token.copy_(token)
        self.out.index_copy_(1, self.column, token)
        self.done |= (token == self.eos).any(1)
        self.column += 1
        self.position += 1

    def _logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        mask = self.mask if self.static else self.mask[:, : self.seen]
        optional = {"position_ids": positions, "logits_to_keep": 1}
        arguments = {name: value for name, value in optional.items() if name in self.accepted}
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **arguments)
        logits: Tensor = out.logits[:, -1]
        return logits


def why_no_static_cache(model: PreTrainedModel) -> str | None:
    """What keeps the model from a cache of fixed size; `None` if nothing does."""
    name, attention = type(model).__name__, model.config._attn_implementation
    if not model._can_compile_fullgraph:
        return f"{name} can't work with one of fixed size"
    if attention not in ("sdpa", "eager"):
        return f"{attention} attention would read one of fixed size to its end"
    kinds = {type(layer) for layer in StaticCache(config=model.config, max_cache_len=1).layers}
    if others := kinds - {StaticLayer, StaticSlidingWindowLayer}:
        return f"{name} has a {others.pop().__name__}"
    return None


class HostWatch(TorchDispatchMode):
    """Within, notes in `asked` what makes the host wait for the device, or brings it a value: no replay can do that."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _OF_THE_HOST:
            self.asked.add(name)
        return func(*args, **kwargs or {})
