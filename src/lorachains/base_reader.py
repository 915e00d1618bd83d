"""What the routers of a mixture read of prompts that no expert serves.

The base is frozen, so that a prompt is always read alike: what was read of the training prompts once serves all epochs.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from lorachains.bank import bare
from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.blocks import Blocks
from lorachains.chain import Chain
from lorachains.filling import Sizes, filled
from lorachains.graphs import Replayed, why_not
from lorachains.memory import out_of_memory
from lorachains.packing import packs
from lorachains.routers import Prompts, Routers, padded_prompts, stream_prompts
from lorachains.scoring import pass_over

log = logging.getLogger(__name__)

BATCH, ROOM = 64, 0.25
"""So many prompts are read at once, and such a part of the memory that is free what was read may take."""
LENGTHS = 256
"""What is recorded as a graph is for prompts of up to a multiple of so many tokens."""


class BaseReader:
    """Has the base read prompts, and keeps what it read of those that come again.

    Args:
        chain: the experts over the base.
        blocks, routers: the mixture's.

    Attributes:
        known: what the routers read of each prompt that is kept; `None` if none is.
    """

    def __init__(self, chain: Chain, blocks: Blocks, routers: Routers):
        self.chain, self.blocks, self.routers = chain, blocks, routers
        self.known: Float[Tensor, "texts blocks hidden"] | None = None
        self._replayed: Replayed | None = None
        self._graphs = True  # as far as is known
        self._sizes, self._longest = Sizes(), 0

    def __call__(self, batch: TokenBatch, prompts: Prompts) -> list[Tensor]:
        """What each block's router reads of each text, `(texts, hidden)`: kept, for a batch with numbers, or read."""
        numbers = batch.numbers if packs(self.chain.model) else batch.padded().numbers
        if self.known is None or numbers is None:
            return self.read(batch, prompts)
        return list(self.known[numbers].unbind(1))

    def of_prompts(
        self, prompts: Sequence[Sequence[int]], pad: int = 0, graphs: bool = False
    ) -> Float[Tensor, "blocks texts hidden"]:
        """What each block's router reads of each prompt.

        Args:
            prompts: token ids; none is empty.
            pad: a token that fills up blocks.
            graphs: whether the pass is recorded as a CUDA graph and replayed, where that can be done: a pass over short
                prompts is a thousand small kernels.
        """
        with torch.compiler.set_stance("force_eager"):
            if graphs and self._graphs and why_not(self.chain.model) is None:
                try:
                    return self._by_graph(prompts, pad)
                except Exception as error:  # whatever a model does that can't be recorded
                    if out_of_memory(error):
                        raise
                    why = next(iter(str(error).splitlines()), type(error).__name__)
                    log.info("deciding without CUDA graphs: %s", why)
                    self._graphs, self._replayed = False, None
            return torch.stack(self.read(*asked(self.chain, prompts, pad)))

    def _by_graph(self, prompts: Sequence[Sequence[int]], pad: int) -> Float[Tensor, "blocks texts hidden"]:
        if self._replayed is None:
            self._replayed = Replayed(self._whole, self.chain.device, lambda: self.chain.layout)
        batch = replace(_texts_of(prompts, pad), ends=None)  # their number would be one more size, and nobody asks
        self._longest = max(self._longest, -(-batch.longest // LENGTHS) * LENGTHS)
        (pooled,) = self._replayed(filled(batch, self._longest, self._sizes.of(batch)))
        return pooled[:, list(batch.texts)]

    def _whole(self, batch: TokenBatch) -> tuple[Tensor, ...]:
        """Of each segment, `(blocks, segments, hidden)`."""
        where, _ = prompts_in(self.chain.model, batch)
        return (torch.stack(self.read(batch, where)),)

    @torch.no_grad()
    def read(self, batch: TokenBatch, prompts: Prompts) -> list[Tensor]:
        """What each block's router reads of each text, `(texts, hidden)`. In evaluation mode, as where it decides."""
        pooled, training = [torch.empty(0)] * len(self.blocks), self.chain.model.training

        def see(block: int, x: Tensor) -> None:
            pooled[block] = self.routers.pooled(x, prompts)

        self.chain.model.eval()
        try:
            with bare(self.chain.banks.values()), self.blocks.watched(see):
                pass_over(self.chain.model, batch)
        finally:
            self.chain.model.train(training)
        return pooled

    def keep(self, prompts: Sequence[Sequence[int]], pad: int = 0) -> None:
        """Reads prompts and keeps that, by their numbers here; unless it takes more than a part (`ROOM`) of a GPU's
        free memory.

        Args:
            prompts: token ids; none is empty.
            pad: a token that fills up blocks.
        """
        if self.known is not None:
            return
        if not self._has_room(len(prompts)):
            log.warning(
                "what the base reads of prompts isn't kept, for lack of memory: it is read in each step, "
                "and routers learn from its own texts alone"
            )
            return
        parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        self.known = torch.cat([self.of_prompts(part, pad).transpose(0, 1) for part in parts])

    def _has_room(self, texts: int) -> bool:
        if self.chain.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self.chain.device)
        return texts * self.routers.rows[0].nbytes <= ROOM * free


class OtherTexts:
    """Training texts beside a batch's own from which routers learn, drawn anew for each batch from those that are kept.

    Args:
        reader: what keeps them.
        count: how many a batch.
        domains: of all training texts, by their numbers; as many as there are experts, of one that doesn't count.

    Attributes:
        numbers: those drawn. They stay where they are, for a pass that is replayed.
    """

    def __init__(self, reader: BaseReader, count: int, domains: Int64[Tensor, " texts"]):
        self.reader, self.domains = reader, domains
        self.numbers = domains.new_zeros(count)

    def draw(self, seed: int) -> None:
        """Draws others; the same ones by the same seed. The host doesn't wait for the device."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(self.domains), self.numbers.shape, generator=generator)
        self.numbers.copy_(drawn.pin_memory() if self.numbers.is_cuda else drawn, non_blocking=True)

    def beside(
        self, read: Float[Tensor, "blocks texts hidden"], domains: Int64[Tensor, " texts"]
    ) -> tuple[Float[Tensor, "blocks more hidden"], Int64[Tensor, " more"]]:
        """What routers read of a batch's texts, and these texts' domains, with those drawn; nothing more if none are
        kept."""
        if self.reader.known is None:
            return read, domains
        others = self.reader.known[self.numbers].transpose(0, 1)
        return torch.cat([read, others], 1), torch.cat([domains, self.domains[self.numbers]])


def prompts_in(model: PreTrainedModel, batch: TokenBatch) -> tuple[Prompts, Int64[Tensor, " bounds"]]:
    """Where a batch's prompts are, in the layout in which the model reads it, and the bounds of its texts."""
    return stream_prompts(batch) if packs(model) else padded_prompts(batch)


def asked(chain: Chain, prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[TokenBatch, Prompts]:
    """A batch of prompts, each an adapter's own, and where they are in it, in their order."""
    batch = _texts_of(prompts, pad).to(chain.device)
    where, _ = prompts_in(chain.model, batch)
    if packs(chain.model):
        index = torch.tensor(batch.texts, device=chain.device)
        where = Prompts(where.inside[index], where.last[index], where.owner[index])
    return batch, where


def _texts_of(prompts: Sequence[Sequence[int]], pad: int) -> TokenBatch:
    texts = [Tokens([*prompt, pad], [IGNORED] * len(prompt) + [pad]) for prompt in prompts]
    return pack(texts, range(len(texts)), pad)
