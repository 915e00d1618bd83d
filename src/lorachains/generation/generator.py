"""Generation in batches of one shape.

A decode step is launches and memory traffic, hardly arithmetic. So what doesn't change over a generation is done once
before it: factors are made ready for the rows that they serve, keys and values go to a cache of fixed size, and on CUDA
the step is one graph replay. Batches of one shape share their tensors and their graph.
"""

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel

from lorachains.bank import LoraBank, bare
from lorachains.errors import LorachainsError
from lorachains.generation.bounds import Ends, Parts, alike
from lorachains.generation.lane import HostWatch, Lane, why_no_static_cache
from lorachains.generation.sampling import Sampling
from lorachains.generation.serving import Served, serving, total_rank
from lorachains.prefill import Prefill

log = logging.getLogger(__name__)

_BUCKET = 64  # the cache's length is a multiple of it
_SHAPES = 4  # so many are kept, the last used ones
_LOOK = 8  # on CUDA the host asks only every so many tokens whether all rows have ended, for then it has to wait


class Generator:
    """Greedy and sampled continuations of prompts, a batch at a time.

    Args:
        model: in eval mode. One without banks is fine.
        pad: the token that fills up prompts.
        eos: the token or tokens that end a text; `None` if none does.
        graphs: whether decode steps are captured as CUDA graphs, where the architecture lets them be.
    """

    def __init__(self, model: PreTrainedModel, pad: int, eos: int | Sequence[int] | None, graphs: bool):
        self.model, self.pad, self.graphs = model, pad, graphs
        self.eos = [eos] if isinstance(eos, int) else list(eos or ())
        self.banks = [m for m in model.modules() if isinstance(m, LoraBank)]
        self._lanes: OrderedDict[tuple[Any, ...], Lane] = OrderedDict()
        self._replayable: bool | None = None  # not known yet
        self._addresses: list[int] = []
        self._stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        adapter: Int64[Tensor, " rows"] | None = None,
        sampling: Sampling | None = None,
        until: Callable[[int, int], bool] | None = None,
        starts: Sequence[int] | None = None,
        prefill: Prefill | None = None,
    ) -> list[list[int]]:
        """Each prompt's new tokens, up to and with the one that ends the text.

        Args:
            adapter: each row's. Without it a bank's only adapter serves all rows, and banks of several follow the
                route that is set: anew at every step, without a graph.
            sampling: greedy by default.
            until: is given each new token, as it comes, with its prompt's index, up to the one with which it says that
                the text is at its end.
            starts: each prompt's first token that its adapter serves, behind at least one that the base alone reads;
                by default adapters serve all tokens.
            prefill: what was read of the prompts up to there, if it was.

        Raises:
            LorachainsError: a prompt, or what is before its start, is empty, it is too long, or `adapter` or the seeds
                don't fit the prompts.
        """
        if not prompts:
            return []
        self._check(prompts, max_new_tokens, sampling, starts)
        owners, texts = self._owners(len(prompts), adapter), dict[int, list[int]]()
        for rows in alike(prompts, starts):
            order = sorted(rows, key=owners.__getitem__) if owners else rows
            ends = Ends(order, until) if until else None
            parts = Parts([prompts[row] for row in order], starts and [starts[row] for row in order],
                           prefill and prefill.of(order))  # fmt: skip
            drawn = sampling and replace(sampling, seeds=[sampling.seeds[row] for row in order])
            with self._own_stream():
                new = self._generate(parts, max_new_tokens, sorted(owners[row] for row in rows if owners), drawn, ends)
            texts |= zip(order, map(self._up_to_eos, new), strict=True)
        return [texts[row] for row in range(len(prompts))]

    def clear(self) -> None:
        """Frees the memory of caches and graphs; a later call makes new ones."""
        self._lanes.clear()

    def _generate(
        self, prompts: Parts, steps: int, owners: list[int], sampling: Sampling | None, ends: Ends | None
    ) -> list[list[int]]:
        """All rows' tokens, of equal length. Rows come sorted by their owners, so that these serve whole groups."""
        size = math.gcd(*Counter(owners).values()) or len(prompts.rests)
        lane = self._lane(len(prompts.rests), prompts.width + steps, owners[::size], sampling)
        graphs = self._captures and bool(lane.served or not self.banks)
        look = _LOOK if lane.token.is_cuda else 1
        taken = 1
        # Layers compiled for training would be compiled anew for these shapes, and for each lane.
        with torch.compiler.set_stance("force_eager"), serving(self.banks, lane.served):
            lane.clear()
            with bare(self.banks):
                prompts.read_first(lane, self.pad)
            lane.begin(prompts.rests, self.pad, sampling, steps)
            while not (ends.reached(lane) if ends else not taken % look and lane.done.all()) and taken < steps:
                self._step(lane, graphs)
                taken += 1
        tokens: list[list[int]] = lane.out[:, :taken].tolist()
        return [row[: ends.at.get(i)] for i, row in enumerate(tokens)] if ends else tokens

    def _step(self, lane: Lane, graphs: bool) -> None:
        """Takes each row's next token. The first step of all tells whether one can be captured."""
        if not graphs or self._replayable is not None:
            lane.advance(graphs and bool(self._replayable))
            return
        with HostWatch() as watch:
            lane.advance(graphs=False)
        self._replayable = not watch.asked
        if watch.asked:
            name, asked = type(self.model).__name__, ", ".join(sorted(watch.asked))
            log.info("generating without CUDA graphs: %s needs the host in each step (%s)", name, asked)

    def _lane(self, rows: int, length: int, adapters: list[int], sampling: Sampling | None) -> Lane:
        """The lane of this shape, with the groups' adapters loaded."""
        self._forget_if_moved()
        groups, length = len(adapters), -(-length // _BUCKET) * _BUCKET
        rank = total_rank(self.banks[0]) if self.banks else 0
        dtype = _compute_dtype(self.model)
        drawing = sampling and (sampling.temperature, sampling.top_k, sampling.top_p)
        key = (rows, length, groups, rank, dtype, drawing)
        if key not in self._lanes:
            if len(self._lanes) == _SHAPES:
                self._lanes.popitem(last=False)
            served = [Served(bank, groups, rank, dtype) for bank in self.banks] if groups else []
            self._lanes[key] = Lane(self.model, rows, length, self._static, self.eos, served)
        self._lanes.move_to_end(key)
        lane = self._lanes[key]
        index = torch.tensor(adapters, dtype=torch.long, device=lane.token.device)
        for bank, links in zip(self.banks, lane.served, strict=False):
            links.load(bank, index)
        return lane

    def _owners(self, rows: int, adapter: Tensor | None) -> list[int]:
        """Each row's adapter; none where the banks follow their route."""
        experts = len(self.banks[0].lora_A) if self.banks else 1
        if adapter is None:
            return [0] * rows if experts == 1 else []
        owners: list[int] = adapter.tolist()
        if len(owners) != rows or not all(0 <= owner < experts for owner in owners):
            raise LorachainsError(
                f"adapter={owners} for {rows} prompts and {experts} adapters: give each prompt one of 0 … {experts - 1}"
            )
        return owners

    def _check(
        self, prompts: Sequence[Sequence[int]], steps: int, sampling: Sampling | None, starts: Sequence[int] | None
    ) -> None:
        if steps < 1:
            raise LorachainsError(f"max_new_tokens={steps}: give at least 1")
        lengths = [len(prompt) for prompt in prompts]
        if 0 in lengths:
            raise LorachainsError(f"prompt {lengths.index(0)} is empty: give it a token to go on from")
        if starts is not None and not all(min(start, n - 1) > 0 for start, n in zip(starts, lengths, strict=True)):
            raise LorachainsError("a prompt has nothing before its adapter's activation: give it a token there")
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        if max(lengths) + steps - 1 > positions:  # the last token is not read
            raise LorachainsError(
                f"a prompt of {max(lengths)} tokens and max_new_tokens={steps} don't fit into the model's {positions} "
                "positions: shorten one of them"
            )
        if sampling is not None and len(sampling.seeds) != len(prompts):
            raise LorachainsError(f"{len(sampling.seeds)} seeds for {len(prompts)} prompts: give each prompt one")

    def _up_to_eos(self, tokens: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(tokens) if token in self.eos), len(tokens))
        return tokens[: end + 1]

    @cached_property
    def _static(self) -> bool:
        why = why_no_static_cache(self.model)
        if why:
            log.info("generating with a growing cache and without CUDA graphs: %s", why)
        return why is None

    @property
    def _captures(self) -> bool:
        return self.graphs and self.model.device.type == "cuda" and self._static

    def _forget_if_moved(self) -> None:
        """A graph reads the base where it was at the capture: once it lies elsewhere, all begin anew."""
        if self._captures:
            modules = [m for m in self.model.modules() if not isinstance(m, LoraBank)]
            addresses = [t.data_ptr() for m in modules for t in (*m.parameters(False), *m.buffers(False))]
            if addresses != self._addresses:
                self._lanes.clear()
            self._addresses = addresses

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Warm-up, capture and replay belong on one stream that is not the default one."""
        if not self._captures:
            yield
            return
        caller = torch.cuda.current_stream(self.model.device)
        self._stream = self._stream or torch.cuda.Stream(self.model.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)


def _compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """That of a layer's input."""
    kind, embeddings = model.device.type, model.get_input_embeddings()
    dtype: torch.dtype = embeddings.get_parameter("weight").dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
