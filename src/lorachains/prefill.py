"""A prompt read once for several adapters: Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397, §3).

What an adapter doesn't serve is read by the base alone. The base's keys and values of a prompt are therefore right for
all adapters that are activated behind it: one reads the prompt, and the others go on from there.
"""

import logging
from collections.abc import Sequence
from copy import copy
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from lorachains.bank import LoraBank, bare
from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.memory import out_of_memory
from lorachains.packing import packs, read
from lorachains.prefixes import Family, in_common
from lorachains.scoring import answer_losses, logits_after
from lorachains.segments import Segments, marked


class Prefill:
    """The keys and values that the base has of prompts, which it reads in one stream.

    Args:
        model: in evaluation mode, one of which `continues` is true.
        banks: all of its, which add nothing here.
        prompts: each one's tokens, one at least.

    Attributes:
        lengths: of the prompts, in tokens.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, banks: Sequence[LoraBank], prompts: Sequence[Sequence[int]]):
        self.model, self.lengths = model, [len(prompt) for prompt in prompts]
        stream, cache = Segments(), DynamicCache()
        self._places = [stream.add_family([marked(np.array(p), 0)], Family((0,), len(p)))[0] for p in prompts]
        self._size = stream.size
        batch = _batch(stream, [], []).to(model.device)
        with bare(banks), logits_after(model, batch.positions):
            read(model, batch, cache)
        self._layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr,misc]

    def of(self, rows: Sequence[int]) -> "Prefill":
        """That of some of the prompts, in any order, one maybe several times."""
        other = copy(self)
        other.lengths, other._places = [self.lengths[i] for i in rows], [self._places[i] for i in rows]
        return other

    @torch.no_grad()
    def log_likelihoods(self, rests: Sequence[Tokens]) -> Float[Tensor, "prompts rests"]:
        """The whole log-likelihood (nats) of each text's answer behind each prompt, by the adapters of the route set.

        Args:
            rests: have tokens in common before their answers; what they begin with is read once for each prompt.
        """
        stream, read_of = Segments(self._size), [marked(rest.stream, 0) for rest in rests]
        family = Family(tuple(range(len(rests))), in_common(read_of))
        places = [own for before in self._places for own in stream.add_family(read_of, family, before)]
        batch = _batch(stream, places, [rest.answer for rest in rests] * len(self._places), self._size)
        batch = batch.to(self.model.device)
        with logits_after(self.model, batch.positions):
            logits = read(self.model, batch, DynamicCache(self._layers)).logits[0]
        losses = F.cross_entropy(
            logits if logits.dtype == torch.float64 else logits.float(), batch.targets, reduction="none"
        )
        totals = losses.new_zeros(batch.candidates).index_add(0, batch.candidate, -losses)
        return totals.view(len(self._places), len(rests))

    def rows(self, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, `(prompts, heads, longest, dim)`: of each prompt's first tokens.

        Args:
            lengths: so many; in place of what is missing before them stands what is of no meaning, but finite.
        """
        width, shape = max(lengths), (len(lengths), max(lengths))
        index = np.zeros(shape, dtype=np.int64)
        for row, (places, length) in enumerate(zip(self._places, lengths, strict=True)):
            index[row, width - length :] = places[:length]
        flat = torch.from_numpy(index.reshape(-1)).to(self.model.device)

        def gathered(states: Tensor) -> Tensor:
            return states[0].index_select(1, flat).unflatten(1, shape).transpose(0, 1)

        return [(gathered(keys), gathered(values)) for keys, values in self._layers]


log = logging.getLogger(__name__)

_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def continues(model: PreTrainedModel, banks: Sequence[LoraBank]) -> bool:
    """Whether the model, in evaluation mode, reads texts in two parts as it does in one; tried out once."""
    if model not in _known:
        _known[model] = packs(model) and _try(model, banks)
    return _known[model]


def _try(model: PreTrainedModel, banks: Sequence[LoraBank]) -> bool:
    prompts, rest = [[5, 9, 13, 4], [7, 3]], [11, 17, 6, 8]
    texts = [Tokens([*prompt, *rest], [-100] * (len(prompt) + 1) + rest[1:]) for prompt in prompts]
    with torch.no_grad(), bare(banks):
        batch = pack(texts).to(model.device)
        whole = answer_losses(model, batch).view(2, -1).sum(1)
        try:
            parts = Prefill(model, banks, prompts).log_likelihoods([Tokens(rest, [-100, *rest[1:]])])[:, 0]
        except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            log.info("prompts are read anew for each adapter: the model can't go on from a part of a text (%s)", reason)
            return False
    same = bool((parts + whole).norm() <= 0.02 * whole.norm())
    if not same:
        log.info("prompts are read anew for each adapter: read in two parts, the model gives a text another likelihood")
    return same


def _batch(stream: Segments, places: Sequence[np.ndarray], answers: Sequence[np.ndarray], read: int = 0) -> TokenBatch:
    """A stream of one adapter, with the texts' places in it and their answers."""
    sizes = [len(answer) for answer in answers]
    before = [own[len(own) - size :] - read for own, size in zip(places, sizes, strict=True)]
    none = [np.arange(0)]
    return TokenBatch(
        **stream.tensors(), adapters=None, ends=None,
        positions=torch.from_numpy(np.concatenate(before or none)),
        targets=torch.from_numpy(np.concatenate(answers or none)),
        candidate=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        served=torch.zeros(sum(sizes), dtype=torch.int64), candidates=len(sizes), loads=(),
    )  # fmt: skip
