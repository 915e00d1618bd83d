"""What a chain's adapters read: a selector the task prompt, an expert the instruction, each with what it answers.

Activated adapters go on from one common reading of the instruction. It is then cut, where it is too long, for the
longest that follows it.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lorachains.answering.folder import BASE, ChainFile
from lorachains.batch import IGNORED, Tokens
from lorachains.data.activation import is_activated, shared_part
from lorachains.data.selector import INSTRUCTION
from lorachains.data.tasks import SELECTOR
from lorachains.data.tokens import prompt_tokens
from lorachains.errors import LorachainsError


class Prompts:
    """Those of adapters that answer whole texts.

    Args:
        template: how a user's request becomes an instruction, with INSTRUCTION in its place.
        max_length: tokens of a prompt; longer ones lose their beginning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int):
        self.tokenizer, self.template, self.max_length = tokenizer, template, max_length

    def instruction(self, text: str) -> str:
        """A user's request in the template."""
        return self.template.replace(INSTRUCTION, text)

    def answered_by(self, adapter: str, instruction: str) -> Tokens:
        """An expert's prompt, or the base's."""
        return prompt_tokens(self.tokenizer, instruction, self.max_length)


class ChainPrompts(Prompts):
    """Those of a chain, which has a selector.

    Args:
        settings: the chain's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChainFile):
        super().__init__(tokenizer, settings.template, settings.max_length)
        self.settings = settings

    def asking(self, instruction: str) -> Tokens:
        """The selector's prompt."""
        return prompt_tokens(self.tokenizer, self.settings.question.about(instruction), self.max_length)

    def named(self, instruction: str) -> list[Tokens]:
        """The selector's prompt with each task's name."""
        return self.settings.question.texts(self.tokenizer, instruction, self.max_length)


class ActivatedPrompts(ChainPrompts):
    """Those of a chain that has activated adapters.

    Raises:
        LorachainsError: prompts are so short that they have no room for a request.

    Attributes:
        names: each task's name behind the shared part of any instruction, with what stands between.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChainFile):
        super().__init__(tokenizer, settings)
        template, question = settings.template, settings.question
        shared, endless = shared_part(template, template), 1 << 30
        self.names = [_behind(text) for text in question.texts(tokenizer, template, endless, shared)]
        self._asking = _behind(prompt_tokens(tokenizer, question.about(template), endless, shared))
        self._answering = _behind(prompt_tokens(tokenizer, template, endless, shared))
        longest = max(len(text.input_ids) for text in (*self.names, self._asking, self._answering))
        if settings.max_length <= longest:
            raise LorachainsError(
                f"data.max_length is {settings.max_length}, but what activated adapters read behind a request takes "
                f"{longest} tokens: give more"
            )
        self._room = settings.max_length - longest

    def shared(self, instruction: str) -> list[int]:
        """What the base alone reads of an instruction.

        Raises:
            LorachainsError: it is nothing.
        """
        text = instruction[: shared_part(self.template, instruction)]
        if not text:
            raise LorachainsError("an instruction is empty: activated adapters need one to go on from")
        return prompt_tokens(self.tokenizer, text, self._room).input_ids

    def asking(self, instruction: str) -> Tokens:
        return _joined(self.shared(instruction), self._asking)

    def named(self, instruction: str) -> list[Tokens]:
        shared = self.shared(instruction)
        return [_joined(shared, name) for name in self.names]

    def answered_by(self, adapter: str, instruction: str) -> Tokens:
        if not self.shares(adapter):
            return super().answered_by(adapter, instruction)
        return _joined(self.shared(instruction), self._answering)

    def shares(self, adapter: str) -> bool:
        """Whether the adapter's prompt begins with what `shared` gives."""
        return adapter in (SELECTOR, BASE) or is_activated(self.settings.activated, adapter)


def prompts_of(tokenizer: PreTrainedTokenizerBase, settings: ChainFile) -> ChainPrompts:
    """A chain's."""
    return (ChainPrompts if settings.activated == "none" else ActivatedPrompts)(tokenizer, settings)


def _joined(shared: Sequence[int], rest: Tokens) -> Tokens:
    before = len(shared)
    return Tokens([*shared, *rest.input_ids], [IGNORED] * before + rest.labels, start=before)


def _behind(text: Tokens) -> Tokens:
    return Tokens(text.input_ids[text.start :], text.labels[text.start :])
