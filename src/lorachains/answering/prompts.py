"""What a chain's adapters read: a selector the task prompt, an expert the instruction, each with what it answers.

Activated adapters go on from one common reading of the instruction. It is then cut, where it is too long, for the
longest that follows it.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lorachains.answering.folder import BASE, ChainFile
from lorachains.batch import IGNORED, Tokens
from lorachains.data.activation import is_activated, shared_part
from lorachains.data.selector import SELECTOR
from lorachains.data.tokens import prompt_tokens


class Prompts:
    """Those of adapters that serve whole texts. Instructions come in the chain's template.

    Args:
        settings: the chain's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChainFile):
        self.tokenizer, self.settings = tokenizer, settings

    def asking(self, instruction: str) -> Tokens:
        """The selector's prompt."""
        return prompt_tokens(self.tokenizer, self.settings.question.about(instruction), self.settings.max_length)

    def named(self, instruction: str) -> list[Tokens]:
        """The selector's prompt with each task's name."""
        return self.settings.question.texts(self.tokenizer, instruction, self.settings.max_length)

    def answered_by(self, adapter: str, instruction: str) -> Tokens:
        """An expert's prompt, or the base's."""
        return prompt_tokens(self.tokenizer, instruction, self.settings.max_length)

    def shares(self, adapter: str) -> bool:
        """Whether the adapter's prompt begins with what `shared` gives."""
        return False


class ActivatedPrompts(Prompts):
    """Those of a chain that has activated adapters.

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
        self._room = max(1, settings.max_length - longest)

    def shared(self, instruction: str) -> list[int]:
        """What the base alone reads of an instruction."""
        text = instruction[: shared_part(self.settings.template, instruction)]
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
        return adapter in (SELECTOR, BASE) or is_activated(self.settings.activated, adapter)


def prompts_of(tokenizer: PreTrainedTokenizerBase, settings: ChainFile) -> Prompts:
    """A chain's."""
    return (Prompts if settings.activated == "none" else ActivatedPrompts)(tokenizer, settings)


def _joined(shared: Sequence[int], rest: Tokens) -> Tokens:
    before = len(shared)
    return Tokens([*shared, *rest.input_ids], [IGNORED] * before + rest.labels, start=before)


def _behind(text: Tokens) -> Tokens:
    return Tokens(text.input_ids[text.start :], text.labels[text.start :])
