"""The paper's way to select a task: generate, and search for a task's name (Chain-of-LoRA, IEEE SPL 2024, §III-B.2).

Generation of a text stops at the first full match. Where the instruction makes the selector repeat it, names in it are
matched like any other: an instruction can so choose its expert, unlike in the exact mode (`trie.py`).
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from lorachains.batch import Tokens
from lorachains.data.selector import Question
from lorachains.generation import Generator
from lorachains.prefill import Prefill
from lorachains.selection.kmp import Names
from lorachains.selection.stream import StreamMatcher

SLACK = 8
"""So many tokens may stand around the longest name."""


def generated_names(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, question: Question, prompts: Sequence[Tokens],
    adapter: int, prefill: Prefill | None = None,
) -> list[str | None]:  # fmt: skip
    """The task that the selector's text names behind each prompt; `None` where it names none.

    Args:
        prompts: the selector's, see `Prompts.asking`.
        adapter: the selector's.
        prefill: see `Generator`.
    """
    task_of = {name.strip(): task for task, name in question.names.items()}
    names = Names(list(task_of))
    matchers = [StreamMatcher(names, tokenizer) for _ in prompts]
    longest = max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in question.answers)
    starts = [prompt.start for prompt in prompts]
    owners = torch.full((len(prompts),), adapter) if generator.banks and len(generator.banks[0].lora_A) > 1 else None
    generator(
        [prompt.input_ids for prompt in prompts], longest + SLACK, owners,
        until=lambda row, token: matchers[row].push(token) is not None,
        starts=starts if any(starts) else None, prefill=prefill,
    )  # fmt: skip
    matches = [matcher.finish() for matcher in matchers]
    return [None if match is None else task_of[match.name] for match in matches]
