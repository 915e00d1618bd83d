"""Where adapters are activated in a prompt: Activated LoRA (aLoRA, Greenewald et al. 2025, arXiv 2504.12397).

An activated adapter serves the tokens from its *invocation sequence* on; the base alone reads what stands before it.
Here that is the instruction up to the end of the user's request: the invocation sequence is what the template puts
behind the request, and, for the selector, the task prompt after that. It is the same for all rows, so that what is
saved is an ordinary PEFT adapter with `alora_invocation_tokens`.

The two parts are tokenised apart: no token is merged over the joint, whatever the request ends with.
"""

from transformers import PreTrainedTokenizerBase

from lorachains.data.selector import INSTRUCTION, Question
from lorachains.data.tasks import SELECTOR
from lorachains.data.tokens import prompt_tokens
from lorachains.errors import LorachainsError

ACTIVATED = ("none", "selector", "all")
"""Which adapters of a chain are activated: none (they serve all tokens), the selector, or the experts as well."""


def is_activated(mode: str, name: str) -> bool:
    """Whether an adapter is."""
    return mode == "all" or (mode == "selector" and name == SELECTOR)


def check_activated(mode: str, task_prompt: str) -> None:
    """Raises `LorachainsError` for an unknown mode, or a task prompt that doesn't follow the instruction."""
    if mode not in ACTIVATED:
        raise LorachainsError(f"method.activated is {mode!r}: choose {', '.join(ACTIVATED)}")
    if mode != "none" and not task_prompt.startswith(INSTRUCTION):
        raise LorachainsError(
            f"method.activated={mode} needs a task prompt behind the instruction, method.task_prompt is "
            f"{task_prompt!r}: begin it with {INSTRUCTION}"
        )


def shared_part(template: str, prompt: str) -> int:
    """How many characters of a prompt come before what the template ends with."""
    return len(prompt.removesuffix(template.partition(INSTRUCTION)[2]))


def invocation(
    tokenizer: PreTrainedTokenizerBase, mode: str, template: str, question: Question, name: str
) -> list[int] | None:
    """The tokens from which on an adapter is active; `None` for one that serves all tokens.

    Of the selector those that no task's name changes: a token that is merged with a name belongs to the name.

    Raises:
        LorachainsError: it is to be activated, and there are none.
    """
    if not is_activated(mode, name):
        return None
    if name == SELECTOR:
        prompts = [question.about(template) + answer for answer in ("", *question.answers)]
    else:
        prompts = [template]
    found = [_behind(tokenizer, template, prompt) for prompt in prompts]
    same = next((i for i, tokens in enumerate(zip(*found, strict=False)) if len(set(tokens)) > 1), min(map(len, found)))
    if not same and name == SELECTOR:
        raise LorachainsError(
            f"method.task_prompt is {question.prompt!r}, which has no words behind the instruction that invoke an "
            "activated selector: add some"
        )
    if not same:
        raise LorachainsError(
            f"the data's prompts end with the request, so that no words invoke an activated expert ({name}): choose "
            "method.activated=selector"
        )
    return found[0][:same]


def _behind(tokenizer: PreTrainedTokenizerBase, template: str, prompt: str) -> list[int]:
    tokens = prompt_tokens(tokenizer, prompt, 1 << 30, shared_part(template, template))
    return tokens.input_ids[tokens.start :]
