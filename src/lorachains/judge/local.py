"""A judge on this machine: any base model that can be loaded here."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from lorachains.errors import check_positive
from lorachains.evaluation import generate, generator
from lorachains.judge.rating import Reply
from lorachains.models import LanguageModel, fingerprint


class LocalModel:
    """Greedy replies of a base model; in its chat template if it has one.

    Args:
        max_new_tokens: of a reply.
        batch_size: prompts at a time.

    Raises:
        LorachainsError: `batch_size` is below 1.
    """

    def __init__(self, base: LanguageModel, max_new_tokens: int, batch_size: int) -> None:
        check_positive("local.max_new_tokens", max_new_tokens)
        check_positive("local.batch_size", batch_size)
        self._base, self._max_new_tokens, self._batch_size = base, max_new_tokens, batch_size
        self._model = base.model.eval()
        self._continue = generator(base, graphs=self._model.device.type == "cuda")

    @property
    def identity(self) -> str:
        """The model's name and weights, and the most tokens of a reply."""
        return f"{self._base.name} {fingerprint(self._model)} {self._max_new_tokens}"

    def replies(self, prompts: Sequence[str]) -> Iterator[Reply]:
        """One reply to each prompt, the longest prompts first.

        Raises:
            LorachainsError: a prompt doesn't fit into the model's positions.
        """
        encoded = [(self._encode(prompt), prompt) for prompt in prompts]
        encoded.sort(key=lambda pair: len(pair[0]), reverse=True)  # what doesn't fit is found at once
        for start in range(0, len(encoded), self._batch_size):
            tokens, batch = zip(*encoded[start : start + self._batch_size], strict=True)
            texts = generate(self._continue, self._base.tokenizer, tokens, self._max_new_tokens)
            yield from (Reply(prompt, text) for prompt, text in zip(batch, texts, strict=True))

    def _encode(self, prompt: str) -> list[int]:
        tokenizer: PreTrainedTokenizerBase = self._base.tokenizer
        if not tokenizer.chat_template:
            return list(tokenizer(prompt).input_ids)
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
