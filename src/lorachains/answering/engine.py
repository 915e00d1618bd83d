"""Answers instructions: the selector names the task, and that task's expert answers (Chain-of-LoRA, §II-A).

All adapters are in one bank, so that rows of different experts share each forward pass. `resident` keeps one in memory
instead, as the paper does: the selector is replaced by an expert, read from disk, as soon as it has selected. Both give
the same text.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorachains.answering.folder import BASE, ChainFile
from lorachains.answering.generated import generated_names
from lorachains.answering.replies import Answered, Choice, Reply, answering, best_first
from lorachains.answering.selectors import Selector, choices
from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.data.selector import INSTRUCTION, SELECTOR
from lorachains.data.tokens import padding_token, prompt_tokens
from lorachains.errors import LorachainsError
from lorachains.evaluation import candidate_losses, generator
from lorachains.generation import Sampling
from lorachains.models import LanguageModel
from lorachains.packing import hard_route, packs
from lorachains.routing import Routing
from lorachains.scoring import answer_losses
from lorachains.transfer import load_adapter


class Answerer:
    """Selects and answers.

    Args:
        base: its layers have the chain's banks.
        chain: has an adapter for each of `folders`, and one of nothing; just one if `resident`.
        folders: the adapters' folders by name.
        settings: of a chain that selects; `None` for a run of one adapter, or of none.
        resident: whether one adapter at a time is in memory.
        selector: who selects in place of the chain's own adapter.
        template: how a user's request becomes a prompt, with INSTRUCTION in its place; a chain's own if it has one.
        graphs: whether decode steps may be replayed as CUDA graphs.
    """

    def __init__(
        self, base: LanguageModel, chain: Chain | None, folders: dict[str, Path], settings: ChainFile | None,
        max_length: int, stop: str | None = None, resident: bool = False, selector: Selector | None = None,
        template: str = INSTRUCTION, graphs: bool = True,
    ):  # fmt: skip
        self.base, self.chain, self.folders, self.settings = base, chain, folders, settings
        self.max_length, self.stop, self.resident, self.selector = max_length, stop, resident, selector
        self.template = settings.template if settings else template
        self._names, self._loaded = [*folders, BASE], BASE
        routing = chain.routing if chain else Routing()
        self._generator = generator(base, routing, graphs and base.model.device.type == "cuda", stop)

    # -- what users call -----------------------------------------------------------------------------------------------

    def select(self, texts: Sequence[str], k: int = 1, batch_size: int = 16) -> list[Choice]:
        """The task of each instruction, by the selector; of a run that has none, its one adapter.

        Args:
            texts: instructions as a user writes them.
            k: of the likeliest tasks so many are told.
            batch_size: instructions of a forward pass.
        """
        if self.selector is not None:
            return self.selector.select(texts, k, batch_size)
        if self.settings is None:
            return [Choice(self._names[0])] * len(texts)
        return [choice for some in parts(texts, batch_size) for choice in self._select(some, k, self.settings)]

    def generate(
        self, texts: Sequence[str], max_new_tokens: int = 64, k: int = 1, batch_size: int = 16,
        sampling: Sampling | None = None,
    ) -> list[Answered]:  # fmt: skip
        """An answer to each instruction.

        Args:
            texts: instructions as a user writes them.
            k: of the likeliest tasks so many answer, and the best is the one that is likeliest together with its task:
                the selector's probability times the expert's.
            batch_size: answers of a forward pass.
            sampling: with a seed for each text; greedy by default.
        """
        choices = self.select(texts, k, batch_size)
        asked = [(row, name) for row, choice in enumerate(choices) for name in answering(choice, k)]
        order = sorted(range(len(asked)), key=lambda i: asked[i][1]) if self.resident else list(range(len(asked)))
        replies: dict[int, Reply] = {}
        for part in parts(order, batch_size):
            seeds = None if sampling is None else replace(sampling, seeds=[sampling.seeds[asked[i][0]] for i in part])
            prompts = [self._prompt(texts[asked[i][0]]) for i in part]
            told = self._answer(prompts, [asked[i][1] for i in part], max_new_tokens, seeds, score=k > 1)
            replies |= zip(part, told, strict=True)
        found: list[list[Reply]] = [[] for _ in texts]
        for i, (row, _) in enumerate(asked):
            found[row].append(replies[i])
        return [Answered(choice, best_first(choice, own)) for choice, own in zip(choices, found, strict=True)]

    # -- selecting -----------------------------------------------------------------------------------------------------

    def _select(self, texts: Sequence[str], k: int, settings: ChainFile) -> list[Choice]:
        start, instructions = time.perf_counter(), [settings.template.replace(INSTRUCTION, text) for text in texts]
        if settings.selection == "generate":
            adapter = self._adapters([SELECTOR])[0]
            question = settings.question
            asked = [question.about(instruction) for instruction in instructions]
            names = generated_names(self._generator, self.base.tokenizer, question, asked, adapter, self.max_length)
            chosen = [Choice(name or settings.fallback, (name,) if name else ()) for name in names]
        else:
            chosen = choices(self.scores(instructions), k, settings)
        seconds = time.perf_counter() - start
        return [replace(choice, seconds=seconds) for choice in chosen]

    @torch.no_grad()
    def scores(self, instructions: Sequence[str]) -> Float[Tensor, "rows tasks"]:
        """The log-likelihood (nats) of each task's name as the selector's answer. The prompt is read once for all."""
        assert self.settings is not None
        question = self.settings.question
        texts = [t for i in instructions for t in question.texts(self.base.tokenizer, i, self.max_length)]
        means = self._likelihoods(texts, [SELECTOR] * len(texts))
        totals = [mean * len(text.answer) for mean, text in zip(means, texts, strict=True)]
        return torch.tensor(totals, dtype=torch.float64).view(len(instructions), -1)

    # -- answering -----------------------------------------------------------------------------------------------------

    def _prompt(self, text: str) -> list[int]:
        return prompt_tokens(self.base.tokenizer, self.template.replace(INSTRUCTION, text), self.max_length)

    def _answer(
        self, prompts: list[list[int]], names: list[str], most: int, sampling: Sampling | None, score: bool
    ) -> list[Reply]:
        """Each prompt's reply by its own adapter."""
        if self.resident and len(set(names)) > 1:
            replies: list[Reply] = []
            for name in dict.fromkeys(names):  # side by side
                own = [i for i, other in enumerate(names) if other == name]
                seeds = sampling and replace(sampling, seeds=[sampling.seeds[i] for i in own])
                replies += self._answer([prompts[i] for i in own], [name] * len(own), most, seeds, score)
            return replies
        start = time.perf_counter()
        new = self._continued(prompts, names, most, sampling)
        seconds = time.perf_counter() - start
        likelihoods: list[float | None] = [None] * len(new)
        if score:
            texts = [_answered(prompt, tokens) for prompt, tokens in zip(prompts, new, strict=True)]
            means = self._likelihoods(texts, names)
            likelihoods = [mean * len(tokens) for mean, tokens in zip(means, new, strict=True)]
        texts_of = self.base.tokenizer.batch_decode(new, skip_special_tokens=True)
        cut = [(text.split(self.stop)[0] if self.stop else text).strip() for text in texts_of]
        told = zip(names, cut, new, likelihoods, strict=True)
        return [Reply(name, text, len(tokens), seconds, likely) for name, text, tokens, likely in told]

    def _continued(
        self, prompts: list[list[int]], names: Sequence[str], most: int, sampling: Sampling | None
    ) -> list[list[int]]:
        """Each prompt's new tokens by its own adapter."""
        adapters = self._adapters(names)
        owners = torch.tensor(adapters) if self._several else None
        return self._generator(prompts, most, owners, sampling)

    @torch.no_grad()
    def _likelihoods(self, texts: Sequence[Tokens], names: Sequence[str]) -> list[float]:
        """The mean log-likelihood (nats) of each text's answer tokens, by its own adapter."""
        adapters, model = self._adapters(names), self.base.model
        experts = self.chain.experts if self.chain else 1
        batch: TokenBatch = pack(
            texts, adapters if self._several else None, padding_token(self.base.tokenizer), experts, packs(model)
        ).to(model.device)
        if self.chain:
            self.chain.route = hard_route(model, batch)
        return (-candidate_losses(batch, answer_losses(model, batch))).tolist()

    # -- adapters ------------------------------------------------------------------------------------------------------

    @property
    def _several(self) -> bool:
        return self.chain is not None and self.chain.experts > 1

    def _adapters(self, names: Sequence[str]) -> list[int]:
        """Where the named adapters are in the bank; the one, if they are the same, of a bank that holds one."""
        if self._several:
            return [self._names.index(name) for name in names]
        if self.chain is not None and (name := names[0]) != self._loaded:
            self._hold(self.chain, name)
        return [0] * len(names)

    def _hold(self, chain: Chain, name: str) -> None:
        """Puts an adapter from disk in the place of the one that is in memory."""
        if name == BASE:
            for bank in chain.banks.values():
                bank.lora_B.data.zero_()
        else:
            load_adapter(chain, self.folders[name])
        self._loaded = name


def _answered(prompt: list[int], new: list[int]) -> Tokens:
    return Tokens(prompt + new, [IGNORED] * len(prompt) + new)


def parts(items: Sequence, size: int) -> list[Sequence]:  # type: ignore[type-arg]
    """The items, so many at a time."""
    if size < 1:
        raise LorachainsError(f"batch_size is {size}: give at least 1")
    return [items[start : start + size] for start in range(0, len(items), size)]
