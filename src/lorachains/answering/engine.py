"""Answers instructions: the selector names the task, and that task's expert answers (Chain-of-LoRA, §II-A).

All adapters are in one bank, so that rows of different experts share each forward pass. `resident` keeps one in memory
instead, as the paper does: the selector is replaced by an expert, read from disk, as soon as it has selected. Both give
the same text. Where adapters are activated behind the request, the base reads it once for all of them (`Prefill`).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorachains.answering.folder import BASE, ChainFile
from lorachains.answering.generated import generated_names
from lorachains.answering.prompts import ActivatedPrompts, ChainPrompts, Prompts
from lorachains.answering.replies import Answered, Choice, Reply, answering, best_first, check_texts
from lorachains.answering.selectors import Selector, choices
from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.data.tasks import SELECTOR
from lorachains.data.tokens import padding_token
from lorachains.errors import LorachainsError
from lorachains.evaluation import candidate_losses, generator
from lorachains.generation import Sampling
from lorachains.models import LanguageModel
from lorachains.packing import hard_route, packs
from lorachains.prefill import Prefill, continues
from lorachains.routing import HardRoute
from lorachains.scoring import answer_losses
from lorachains.transfer import load_adapter


class Answerer:
    """Selects and answers.

    Args:
        base: its layers have the chain's banks.
        chain: has an adapter for each of `folders`, and one of nothing; just one if `resident`.
        folders: the adapters' folders by name.
        prompts: what the adapters read; those of a chain, if it selects.
        settings: of a chain that selects; `None` for a run of one adapter, or of none.
        resident: whether one adapter at a time is in memory.
        selector: who selects in place of the chain's own adapter.
        graphs: whether decode steps may be replayed as CUDA graphs.

    Attributes:
        reuses: whether activated adapters go on from one reading of an instruction; false where the architecture can't,
            if `resident`, or if another selects. They give the same text without.
    """

    def __init__(
        self, base: LanguageModel, chain: Chain | None, folders: dict[str, Path], prompts: Prompts,
        settings: ChainFile | None = None, stop: str | None = None, resident: bool = False,
        selector: Selector | None = None, graphs: bool = True,
    ):  # fmt: skip
        self.base, self.chain, self.folders, self.prompts = base, chain, folders, prompts
        self.settings, self.stop, self.resident, self.selector = settings, stop, resident, selector
        self._names, self._loaded = [*folders, BASE], BASE
        self._generator = generator(base, graphs and base.model.device.type == "cuda", stop)
        self._banks = list(chain.banks.values()) if chain else []
        activated = settings is not None and isinstance(prompts, ActivatedPrompts)
        alone = not resident and selector is None
        self.reuses = activated and alone and continues(base.model, self._banks)

    # -- what users call -----------------------------------------------------------------------------------------------

    def select(self, texts: Sequence[str], k: int = 1, batch_size: int = 16) -> list[Choice]:
        """The task of each instruction, by the selector; of a run that has none, its one adapter.

        Args:
            texts: instructions as a user writes them.
            k: of the likeliest tasks so many are told.
            batch_size: instructions of a forward pass.
        """
        check_texts(texts)
        if self.selector is not None:
            return self.selector.select(texts, k, batch_size)
        if self.settings is None and k != 1:
            raise LorachainsError(f"top_k is {k}, but here nothing is selected: set top_k=1")
        if self.settings is None:
            return [Choice(self._names[0])] * len(texts)
        return [choice for some in parts(texts, batch_size) for choice in self._select(some, k, self.settings)[0]]

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
        return list(self.stream(texts, max_new_tokens, k, batch_size, sampling))

    def stream(
        self, texts: Sequence[str], max_new_tokens: int = 64, k: int = 1, batch_size: int = 16,
        sampling: Sampling | None = None,
    ) -> Iterator[Answered]:  # fmt: skip
        """The same, a batch's answers when they are there; if `resident`, all at the end."""
        check_texts(texts)
        if self.resident:
            yield from self._generate(texts, max_new_tokens, k, batch_size, sampling)
            return
        for some in parts(range(len(texts)), batch_size):
            seeds = sampling and replace(sampling, seeds=[sampling.seeds[i] for i in some])
            yield from self._generate([texts[i] for i in some], max_new_tokens, k, batch_size, seeds)

    def _generate(
        self, texts: Sequence[str], max_new_tokens: int, k: int, batch_size: int, sampling: Sampling | None
    ) -> list[Answered]:
        read: Prefill | None = None
        if self.reuses and self.settings:
            chosen, read = self._select(texts, k, self.settings)
        else:
            chosen = self.select(texts, k, batch_size)
        asked = [(row, name) for row, choice in enumerate(chosen) for name in answering(choice, k)]
        order = sorted(range(len(asked)), key=lambda i: asked[i][1]) if self.resident else list(range(len(asked)))
        replies: dict[int, Reply] = {}
        for part in parts(order, batch_size):
            seeds = None if sampling is None else replace(sampling, seeds=[sampling.seeds[asked[i][0]] for i in part])
            names, rows = [asked[i][1] for i in part], [asked[i][0] for i in part]
            prompts = [self._prompt(texts[row], name) for row, name in zip(rows, names, strict=True)]
            told = self._answer(prompts, names, max_new_tokens, seeds, k > 1, read and read.of(rows))
            replies |= zip(part, told, strict=True)
        found: list[list[Reply]] = [[] for _ in texts]
        for i, (row, _) in enumerate(asked):
            found[row].append(replies[i])
        return [Answered(choice, best_first(choice, own)) for choice, own in zip(chosen, found, strict=True)]

    # -- selecting -----------------------------------------------------------------------------------------------------

    def _select(self, texts: Sequence[str], k: int, settings: ChainFile) -> tuple[list[Choice], Prefill | None]:
        """The choices, and what was read for all adapters, if it was."""
        start, instructions = time.perf_counter(), [self.prompts.instruction(text) for text in texts]
        read = self._read(instructions)
        if settings.selection == "generate" and k > 1:
            raise LorachainsError(f"top_k is {k}, but a generated name is one: choose selection=exact, or top_k=1")
        if settings.selection == "generate":
            adapter, asking = self._adapters([SELECTOR])[0], [self._asked.asking(text) for text in instructions]
            names = generated_names(self._generator, self.base.tokenizer, settings.question, asking, adapter, read)
            chosen = [Choice(name or settings.fallback, (name,) if name else ()) for name in names]
        else:
            chosen = choices(self.scores(instructions, read), k, settings)
        seconds = time.perf_counter() - start
        return [replace(choice, seconds=seconds) for choice in chosen], read

    @property
    def _asked(self) -> ChainPrompts:
        assert isinstance(self.prompts, ChainPrompts)
        return self.prompts

    @torch.no_grad()
    def scores(self, instructions: Sequence[str], read: Prefill | None = None) -> Float[Tensor, "rows tasks"]:
        """The log-likelihood (nats) of each task's name as the selector's answer. The prompt is read once for all.

        Args:
            read: what was read of the instructions' shared parts, if it was.
        """
        read = read or self._read(instructions)
        if read and self.chain and isinstance(self.prompts, ActivatedPrompts):
            self.chain.route = HardRoute(torch.tensor(self._adapters([SELECTOR]), device=self.base.model.device))
            return read.log_likelihoods(self.prompts.names).double().cpu()
        texts = [text for instruction in instructions for text in self._asked.named(instruction)]
        means = self._likelihoods(texts, [SELECTOR] * len(texts))
        totals = [mean * len(text.answer) for mean, text in zip(means, texts, strict=True)]
        return torch.tensor(totals, dtype=torch.float64).view(len(instructions), -1)

    # -- answering -----------------------------------------------------------------------------------------------------

    def _read(self, instructions: Sequence[str]) -> Prefill | None:
        """What the base reads for all adapters."""
        if not (self.reuses and isinstance(self.prompts, ActivatedPrompts)):
            return None
        return Prefill(self.base.model, self._banks, [self.prompts.shared(text) for text in instructions])

    def _prompt(self, text: str, adapter: str) -> Tokens:
        return self.prompts.answered_by(adapter, self.prompts.instruction(text))

    def _answer(
        self, prompts: list[Tokens], names: list[str], most: int, sampling: Sampling | None, score: bool,
        read: Prefill | None,
    ) -> list[Reply]:  # fmt: skip
        """Each prompt's reply by its own adapter."""
        kinds = [name if self.resident else prompt.start > 0 for name, prompt in zip(names, prompts, strict=True)]
        if len(set(kinds)) > 1:
            replies: dict[int, Reply] = {}
            for kind in dict.fromkeys(kinds):
                own = [i for i, other in enumerate(kinds) if other == kind]
                seeds = sampling and replace(sampling, seeds=[sampling.seeds[i] for i in own])
                some = ([prompts[i] for i in own], [names[i] for i in own], most, seeds, score, read and read.of(own))
                replies |= zip(own, self._answer(*some), strict=True)
            return [replies[i] for i in range(len(prompts))]
        start = time.perf_counter()
        new = self._continued(prompts, names, most, sampling, read)
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
        self, prompts: list[Tokens], names: Sequence[str], most: int, sampling: Sampling | None, read: Prefill | None
    ) -> list[list[int]]:
        """Each prompt's new tokens by its own adapter."""
        adapters = self._adapters(names)
        owners = torch.tensor(adapters) if self._several else None
        starts = [prompt.start for prompt in prompts] if prompts[0].start else None
        return self._generator([prompt.input_ids for prompt in prompts], most, owners, sampling,
                               starts=starts, prefill=read if starts else None)  # fmt: skip

    @torch.no_grad()
    def _likelihoods(self, texts: Sequence[Tokens], names: Sequence[str]) -> list[float]:
        """The mean log-likelihood (nats) of each text's answer tokens, by its own adapter."""
        adapters, model = self._adapters(names), self.base.model
        served = sorted(set(adapters))  # each takes a block at least
        owners = [served.index(adapter) for adapter in adapters] if len(served) > 1 else None
        batch: TokenBatch = pack(texts, owners, padding_token(self.base.tokenizer), len(served), packs(model))
        batch = batch.to(model.device)
        if self.chain:
            self.chain.route = hard_route(model, batch, served if self._several else None)
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
            load_adapter(chain, self.folders[name], activated=True)
        self._loaded = name


def _answered(prompt: Tokens, new: list[int]) -> Tokens:
    return Tokens(prompt.input_ids + new, [IGNORED] * len(prompt.input_ids) + new, start=prompt.start)


def parts(items: Sequence, size: int) -> list[Sequence]:  # type: ignore[type-arg]
    """The items, so many at a time."""
    if size < 1:
        raise LorachainsError(f"batch_size is {size}: give at least 1")
    return [items[start : start + size] for start in range(0, len(items), size)]
