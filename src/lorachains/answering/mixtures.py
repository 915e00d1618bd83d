"""A mixture of LoRAs (MoA) at work: its routers say which expert a text goes to, and that expert answers.

Where blocks decide by themselves ("argmax", "soft"), or token by token (MoE-LoRA), no expert answers alone: the answer
is the mixture's.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lorachains.answering.engine import Answerer, parts
from lorachains.answering.prompts import Prompts
from lorachains.answering.replies import Choice, Route, check_texts
from lorachains.batch import Tokens
from lorachains.data.tokens import padding_token
from lorachains.decisions import one_expert
from lorachains.errors import LorachainsError, check_positive
from lorachains.generation import Sampling
from lorachains.mixture_format import attach_mixture
from lorachains.models import LanguageModel
from lorachains.prefill import Prefill

MIXTURE = "mixture"
"""Who answers where all experts do."""


class MixtureAnswerer(Answerer):
    """Routes and answers.

    Args:
        base: the model that the mixture was trained on. Its targeted layers are replaced, in place.
        folder: with `mixture.json`, `router.safetensors` and the experts' folders.
        decision: in place of the mixture's own, see `decisions`.

    Raises:
        LorachainsError: the mixture is missing or damaged, belongs to another base, or can't decide so.
    """

    def __init__(self, base: LanguageModel, folder: Path, decision: str | None = None):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base.model.eval().to(device)
        self.mixture, self.about = attach_mixture(base, folder, decision)
        self.alone = self.mixture.one_each and not self.about.by_token
        folders = {name: folder / name for name in self.about.names}
        about = self.about
        super().__init__(
            base, self.mixture.chain, folders, Prompts(base.tokenizer, about.template, about.max_length),
            stop=about.stop, graphs=self.alone,  # blocks' own routes are others for each batch
        )  # fmt: skip

    def select(self, texts: Sequence[str], k: int = 1, batch_size: int = 16) -> list[Choice]:
        """Where the routers send each text, and of the likeliest experts `k`.

        Raises:
            LorachainsError: so many make no sense, or several are to answer, but none answers alone.
        """
        check_texts(texts)
        check_positive("top_k", k)
        if not self.alone and k != 1:
            raise LorachainsError(f"top_k is {k}, but here all experts answer together: set top_k=1, or decision=vote")
        if self.about.by_token:
            return [Choice(MIXTURE)] * len(texts)
        return [choice for some in parts(texts, batch_size) for choice in self._routed(some, k)]

    def _routed(self, texts: Sequence[str], k: int) -> list[Choice]:
        start, names = time.perf_counter(), self.about.names
        prompts = [self._prompt(text, MIXTURE).input_ids for text in texts]
        logits = self.mixture.logits(prompts, padding_token(self.base.tokenizer), graphs=True)
        voted = one_expert(logits, "vote", self.mixture.voters).tolist()
        experts, blocks = self.mixture.experts(logits).tolist(), logits.argmax(-1).T.tolist()
        deciding = logits if self.mixture.voters is None else logits[self.mixture.voters]
        shares, found = deciding.softmax(-1).mean(0).tolist(), list[Choice]()
        for expert, winner, of_blocks, mine in zip(experts, voted, blocks, shares, strict=True):
            told = dict(zip(names, mine, strict=True))
            route = Route(self.mixture.mode, names[winner], tuple(names[block] for block in of_blocks), told)
            order = [names[expert], *sorted((n for n in names if n != names[expert]), key=lambda n: -told[n])][:k]
            known = (tuple(order), tuple(told[name] for name in order)) if self.alone else ((), ())
            found.append(Choice(names[expert] if self.alone else MIXTURE, *known, route=route))
        seconds = time.perf_counter() - start
        return [replace(choice, seconds=seconds) for choice in found]

    def _continued(
        self, prompts: list[Tokens], names: Sequence[str], most: int, sampling: Sampling | None, read: Prefill | None
    ) -> list[list[int]]:
        if self.alone:
            return super()._continued(prompts, names, most, sampling, read)
        ids = [prompt.input_ids for prompt in prompts]
        if self.about.by_token:
            with self.mixture.by_token():
                return self._generator(ids, most, sampling=sampling)
        # Routed once more: what blocks decide isn't kept between the two phases.
        logits = self.mixture.logits(ids, padding_token(self.base.tokenizer), graphs=True)
        return self.mixture.generate(self._generator, ids, most, logits, sampling)
