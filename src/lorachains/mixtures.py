"""A trained mixture to be used: which expert a text goes to, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorachains.data.tasks import Example
from lorachains.data.tokens import encode_eval, padding_token, prompt_of
from lorachains.decisions import one_expert
from lorachains.evaluation import generator
from lorachains.mixture_format import attach_mixture
from lorachains.models import LanguageModel

BATCH = 32
"""Texts that are read at once."""


@dataclass(frozen=True)
class Routed:
    """Where a text goes.

    Attributes:
        expert: the one that answers; the vote's where each block decides by itself.
        voted: the blocks' majority.
        blocks: each block's own choice.
        probabilities: of each expert, their mean over the blocks.
    """

    expert: str
    voted: str
    blocks: list[str]
    probabilities: dict[str, float]


class TrainedMixture:
    """Experts and routers on their base, from the `adapters/` of a run of `method=moa`.

    Args:
        base: the model that they were trained on. Its targeted layers are replaced, in place.
        folder: with `mixture.json`, `router.safetensors` and the experts' folders.
        decision: in place of the mixture's own, see `decisions`.
        max_length: tokens of a prompt; a longer one loses its beginning.

    Raises:
        LorachainsError: the mixture is missing or damaged, or belongs to another base.
    """

    def __init__(self, base: LanguageModel, folder: Path, decision: str | None = None, max_length: int = 1024):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base.model.eval().to(device)
        self.base, self.max_length = base, max_length
        self.mixture, self.about = attach_mixture(base, folder, decision)
        self._generator = generator(base, self.mixture.chain.routing, graphs=device.type == "cuda")

    def route(self, texts: Sequence[str]) -> list[Routed]:
        """Where each text goes, block by block and by all."""
        return [routed for start in range(0, len(texts), BATCH) for routed in self._route(texts[start : start + BATCH])]

    def generate(self, texts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """What the texts' experts answer, greedily; texts of different experts in one batch."""
        answers: list[str] = []
        for start in range(0, len(texts), BATCH):
            prompts = self._prompts(texts[start : start + BATCH])
            new = self.mixture.generate(self._generator, prompts, max_new_tokens, self._logits(prompts))
            answers += self.base.tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers

    def _route(self, texts: Sequence[str]) -> list[Routed]:
        logits, names = self._logits(self._prompts(texts)), self.about.names
        experts, voted = self.mixture.experts(logits).tolist(), one_expert(logits, "vote").tolist()
        blocks, mean = logits.argmax(-1).T.tolist(), logits.softmax(-1).mean(0).tolist()
        return [
            Routed(names[e], names[v], [names[b] for b in each], dict(zip(names, shares, strict=True)))
            for e, v, each, shares in zip(experts, voted, blocks, mean, strict=True)
        ]

    def _logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self.mixture.logits(prompts, padding_token(self.base.tokenizer))

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """As the data modules' prompts are tokenised."""
        examples = [Example("", text, "", f"text {i}") for i, text in enumerate(texts)]
        return [prompt_of(row) for row in encode_eval(self.base.tokenizer, examples, 0, self.max_length)]
