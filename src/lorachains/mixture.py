"""A mixture of LoRAs (MoA): a chain of experts over one model, and routers that say which expert serves a text.

A text is answered in two steps. `logits`: the model reads the prompts, and each block's router decides by its block's
input. Then that decision stays, for scores as for generation with a cache: what is read later changes nothing. With one
decision a text the second step is that of any bank of adapters: one mixed batch, and no dearer for more experts.

Who reads the prompt while routers decide, the paper leaves open (`reads`):

- "base": the model without experts. What routers read is then the same in training as in use, whoever serves the text,
  and stays so when experts are put in, taken out or trained on.
- "experts": each block's banks follow its router's decision as its input arrives, so that the next block reads what it
  will read when it answers (free-running, not told by any label). Where a training pass goes by the label, all blocks
  but the first one learn from inputs that the label's expert has made, and can tell by its hand rather than by the
  text: used, they then follow the first one, right or wrong.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lorachains.base_reader import BaseReader, asked, prompts_in
from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.blocks import Blocks
from lorachains.chain import Chain
from lorachains.decisions import (
    check_decision,
    check_voters,
    hard_weights,
    one_expert,
    soft_weights,
    straight_through,
)
from lorachains.errors import LorachainsError
from lorachains.generation import Generator, Sampling
from lorachains.packing import hard_route, packs
from lorachains.routers import Prompts, Routers
from lorachains.routing import HardRoute, Route, SoftRoute
from lorachains.scoring import answer_losses, mean_per_group, pass_over

Training = Literal["label", "straight_through", "soft", "argmax"]
"""Which way a training pass goes: by the label, or by the routers' decisions, with a gradient for these but for the
last."""
READS = ("base", "experts")
"""Who reads a prompt while routers decide."""


class Mixture:
    """Experts and routers over one model.

    Args:
        chain: the experts.
        pool: what routers read, see `routers`.
        mode, top_k: how a text's experts follow from the routers' logits, see `decisions`.
        shared: whether a block's attention and feed-forward network share a router, see `blocks`.
        voters: the blocks whose routers vote; all if `None`.
        reads: who reads a prompt while routers decide, "base" or "experts".

    Raises:
        LorachainsError: an unknown mode, pool or reader, a voter that there isn't, or a bank outside of the decoder
            blocks.
    """

    def __init__(
        self, chain: Chain, pool: str = "mean_rms", mode: str = "vote", top_k: int | None = None, shared: bool = True,
        voters: Sequence[int] | None = None, reads: str = "experts",
    ):  # fmt: skip
        check_decision(mode, top_k, chain.experts)
        if reads not in READS:
            raise LorachainsError(f"method.reads is {reads!r}: choose {' or '.join(READS)}")
        self.reads = reads
        self.chain, self.model, self.mode, self.top_k, self.shared = chain, chain.model, mode, top_k, shared
        self.blocks = Blocks(chain.model, chain.banks, shared)
        check_voters(voters, len(self.blocks))
        self.voters = None if voters is None else list(voters)
        dtype = next(iter(chain.banks.values())).lora_A.dtype
        hidden = chain.model.config.get_text_config().hidden_size
        self.routers = Routers(chain.experts, len(self.blocks), hidden, pool, dtype).to(chain.device)
        self.by_base = BaseReader(chain, self.blocks, self.routers)

    @contextmanager
    def training(
        self, batch: TokenBatch, way: Training, unlabelled: Training = "soft"
    ) -> Iterator[tuple[Prompts, list[Tensor]]]:
        """Within, a pass over the batch leaves what each block's router reads, `(texts, hidden)`.

        Args:
            way: of texts with a label.
            unlabelled: of those of no expert (`batch.adapters`), not by the label.
        """
        prompts, bounds = prompts_in(self.model, batch)
        some_unlabelled = len(batch.loads) > self.chain.experts
        apart = way != "label" or some_unlabelled
        pooled = [torch.empty(0)] * len(self.blocks)

        def follow(block: int) -> None:
            found = pooled[block] @ self.routers.weight[block].mT
            of_text = self._weights(found, prompts, way)
            if some_unlabelled:
                labelled = prompts.labelled(self.chain.experts).unsqueeze(1)
                of_text = torch.where(labelled, of_text, self._weights(found, prompts, unlabelled))
            weights = prompts.spread(of_text, bounds)
            rows = 1 if packs(self.model) else len(bounds) - 1
            self.blocks.routings[block].route = SoftRoute(weights.view(rows, -1, weights.shape[-1]))

        def see(block: int, x: Tensor) -> None:
            pooled[block] = self.routers.pooled(x, prompts)
            if apart:
                follow(block)

        with ExitStack() as within:
            if self.reads == "base":
                pooled[:] = self.by_base(batch, prompts)
            else:
                within.enter_context(self.blocks.watched(see))
            if apart:
                within.enter_context(self.blocks.routed())
            if apart and self.reads == "base":
                for block in range(len(pooled)):
                    follow(block)
            yield prompts, pooled

    def _weights(
        self, logits: Float[Tensor, "texts experts"], prompts: Prompts, way: Training
    ) -> Float[Tensor, "texts experts"]:
        """What each expert counts for each text; nothing by a label that there isn't."""
        if way == "label":
            every = torch.arange(logits.shape[-1], device=logits.device)
            return (prompts.owner.unsqueeze(1) == every).to(logits.dtype)
        if way == "soft":
            return soft_weights(logits, self.top_k)
        return straight_through(logits) if way == "straight_through" else hard_weights(logits)

    @contextmanager
    def by_token(self) -> Iterator[list[Tensor]]:
        """Within, each token goes its own way in each block, by a weighted sum of experts (MoE-LoRA).

        What the last pass has left are the blocks' logits for its tokens, `(…, experts)`.
        """
        logits: list[Tensor] = [torch.empty(0)] * len(self.blocks)

        def see(block: int, x: Tensor) -> None:
            logits[block] = self.routers.token_logits(block, x)
            self.blocks.routings[block].route = SoftRoute(soft_weights(logits[block], self.top_k))

        with self.blocks.watched(see), self.blocks.routed():
            yield logits

    @torch.no_grad()
    def logits(
        self, prompts: Sequence[Sequence[int]], pad: int = 0, graphs: bool = False
    ) -> Float[Tensor, "blocks texts experts"]:
        """Each block's router logits for each prompt, not told by any label.

        The model is to be in evaluation mode.

        Args:
            prompts: token ids; none is empty.
            pad: a token that fills up blocks.
            graphs: see `BaseReader.of_prompts`; blocks that decide on the way never are.
        """
        if self.reads == "base":
            return self.routers.logits(self.by_base.of_prompts(prompts, pad, graphs))
        with torch.compiler.set_stance("force_eager"):
            return self._logits_on_the_way(*asked(self.chain, prompts, pad))

    def _logits_on_the_way(self, batch: TokenBatch, where: Prompts) -> Float[Tensor, "blocks texts experts"]:
        """Each block's logits, where its banks follow them at once."""
        found: list[Tensor] = []

        def see(block: int, x: Tensor) -> None:
            logits = self.routers.block_logits(block, x, where)
            found.append(logits)
            self.blocks.routings[block].route = self._route(logits, self._owners(batch))

        with self.blocks.watched(see), self.blocks.routed():
            pass_over(self.model, batch)
        return torch.stack(found)

    @property
    def one_each(self) -> bool:
        """Whether a text has one expert in all blocks."""
        return self.mode not in ("argmax", "soft")

    def experts(self, logits: Float[Tensor, "blocks texts experts"]) -> Int64[Tensor, " texts"]:
        """Each text's one expert; the vote's where blocks decide by themselves."""
        return one_expert(logits, self.mode if self.one_each else "vote", self.voters)

    @contextmanager
    def decided(self, logits: Float[Tensor, "blocks texts experts"], batch: TokenBatch | None = None) -> Iterator[None]:
        """Within, each block serves each text as it has decided, for "argmax" and "soft".

        Args:
            batch: what is read then, packed with each text's number as its adapter; `None` for rows in the texts'
                order.
        """
        every = torch.arange(logits.shape[1], device=logits.device)
        owners = every if batch is None else self._owners(batch)
        with self.blocks.routed([self._route(of_block, owners) for of_block in logits]):
            yield

    @torch.no_grad()
    def losses(
        self, texts: Sequence[Tokens], rows: Sequence[int], logits: Float[Tensor, "blocks texts experts"], pad: int = 0
    ) -> Float[Tensor, " candidates"]:
        """The mean negative log-likelihood of each text's answer tokens, in nats, by the experts that were decided on.

        Args:
            texts: candidates, row by row.
            rows: which of the prompts that `logits` are of each text begins with.
        """
        share, each = packs(self.model), logits.shape[1]
        if self.one_each:
            owners, of = self.experts(logits)[torch.tensor(rows)].tolist(), self.chain.experts
        else:
            owners, of = list(rows), max(2, each)  # one alone would need no route
        batch = pack(texts, owners, pad, of, share).to(self.chain.device)
        self.chain.route = hard_route(self.model, batch, joint=True)
        with torch.compiler.set_stance("force_eager"), nullcontext() if self.one_each else self.decided(logits, batch):
            each_token = answer_losses(self.model, batch)
        return mean_per_group(each_token, batch.candidate, batch.candidates, batch.targets)

    @torch.no_grad()
    def features(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[int], pad: int = 0
    ) -> Float[Tensor, "blocks texts hidden"]:
        """What each block's router reads of each prompt, by the base or where its label's expert serves it."""
        texts = [Tokens([*prompt, pad], [IGNORED] * len(prompt) + [pad]) for prompt in prompts]
        found: list[Tensor] = []
        for text, label in zip(texts, labels, strict=True):
            batch = pack([text], [label], pad, self.chain.experts).to(self.chain.device)
            self.chain.route = hard_route(self.model, batch, joint=True)
            with torch.compiler.set_stance("force_eager"), self.training(batch, "label") as (where, pooled):
                if self.reads == "experts":
                    pass_over(self.model, batch)
            found.append(torch.stack(pooled)[:, where.there])
        return torch.cat(found, 1)

    def generate(
        self, generator: Generator, prompts: Sequence[Sequence[int]], max_new_tokens: int, logits: Tensor,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Each prompt's new tokens, by the experts that were decided on.

        Args:
            generator: over the chain's routing.
            logits: the prompts', see `logits`.
            sampling: with a seed for each prompt; greedy by default.
        """
        if self.one_each:
            return generator(prompts, max_new_tokens, self.experts(logits), sampling)
        with self.decided(logits):
            return generator(prompts, max_new_tokens, sampling=sampling)

    def _route(self, logits: Float[Tensor, "texts experts"], owners: Int64[Tensor, " rows"]) -> Route:
        """A block's route for rows, or for the pieces of a stream, that belong to these texts."""
        owners = owners.clamp(max=len(logits) - 1)  # padding may belong to none
        if self.mode == "soft":
            return SoftRoute(soft_weights(logits, self.top_k)[owners])
        return HardRoute(logits.argmax(-1)[owners], joint=True)

    def _owners(self, batch: TokenBatch) -> Int64[Tensor, " rows"]:
        """Which text each row, or each piece of the stream, belongs to."""
        owners = batch.adapters if packs(self.model) else batch.padded().adapters
        assert owners is not None
        return owners
