"""`chain.json`: what makes a folder of adapters a chain of LoRAs that selects by itself (Chain-of-LoRA, IEEE SPL 2024).

Beside it are `adapters/selector/` and `adapters/<task>/`, each in PEFT's format. `selector.json` stands beside a
selector that was trained by itself: `adapter/`, `model/` or `classifier/`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from lorachains.data.selector import Question
from lorachains.data.tasks import SELECTOR
from lorachains.errors import LorachainsError
from lorachains.peft_format import read_config

FILE = "chain.json"
SELECTOR_FILE = "selector.json"
BASE = "base"
"""The name of the model without an adapter, where it is the fallback."""


@dataclass(frozen=True)
class SelectorFile:
    """The settings of a selector.

    Attributes:
        base: the name of the model that it was made of.
        names: each task's name as text, as the selector knows it.
        task_prompt: see `Question`; an encoder classifier isn't asked.
        template: how a user's request becomes an instruction, with `{instruction}` in its place.
        max_length: tokens of a prompt; longer ones lose their beginning.
    """

    base: str
    names: Mapping[str, str]
    task_prompt: str
    template: str
    max_length: int

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order."""
        return list(self.names)

    @property
    def question(self) -> Question:
        """What the selector is asked."""
        return Question(self.task_prompt, self.names)

    def write(self, folder: Path) -> None:
        """Writes `selector.json`, or a chain's `chain.json`."""
        path = folder / (FILE if isinstance(self, ChainFile) else SELECTOR_FILE)
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ChainFile(SelectorFile):
    """The settings of a chain.

    Attributes:
        selection: "exact" or "generate".
        threshold: the least probability of a task that is to be trusted; below it the fallback answers.
        fallback: who answers where no task is found: BASE or a task.
        stop: what ends an answer; `None` for the end-of-sequence token alone.
        activated: which adapters serve only what is behind the request (see `activation`).
    """

    selection: str
    threshold: float
    fallback: str
    stop: str | None
    activated: str = "none"


File = TypeVar("File", bound=SelectorFile)


def check_settings(selection: str, threshold: float, fallback: str, tasks: Sequence[str], section: str) -> None:
    """Raises a LorachainsError that names the setting of `section`, its value, and what is expected."""
    if selection not in ("exact", "generate"):
        raise LorachainsError(f"{section}selection is {selection!r}: choose exact or generate")
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise LorachainsError(f"{section}threshold is {threshold!r}: give a probability from 0 to 1")
    if threshold and selection == "generate":
        raise LorachainsError(f"{section}threshold={threshold} needs probabilities: choose {section}selection=exact")
    if fallback not in (BASE, *tasks):
        raise LorachainsError(f"{section}fallback is {fallback!r}: choose {BASE} or one of {', '.join(tasks)}")
    if reserved := {SELECTOR, BASE} & set(tasks):
        raise LorachainsError(f"data.tasks has {reserved.pop()!r}, which names another adapter here: rename it")


def check_invoked(folder: Path, expected: Sequence[int] | None, setting: str) -> None:
    """Raises `LorachainsError` where a saved adapter isn't activated by these tokens (`None`: not activated at all)."""
    found = read_config(folder).alora_invocation_tokens
    if found != (None if expected is None else list(expected)):
        was, needed = (f"activated by the tokens {t}" if t else "not activated" for t in (found, expected))
        raise LorachainsError(
            f"{folder} is {was}, with {setting} it has to be {needed}: give the setting and the prompts with which it "
            "was trained"
        )


def read_chain(folder: Path) -> ChainFile:
    """The settings of the chain in a run's folder. Raises `LorachainsError` where there is none that can be read."""
    return _read(ChainFile, folder, FILE, "chain", "method=chain_of_lora")


def read_selector(folder: Path) -> SelectorFile:
    """The settings of the selector in a run's folder. Raises `LorachainsError` where there is none that can be read."""
    return _read(SelectorFile, folder, SELECTOR_FILE, "selector", "method=selector, selector_full or classifier")


def _read(kind: type[File], folder: Path, file: str, what: str, methods: str) -> File:
    path = folder / file
    if not path.is_file():
        raise LorachainsError(f"{folder} holds no {what}: {file} is missing; give the folder of a {methods} run")
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise LorachainsError(
            f"{path} can't be read as a {what}'s settings ({error}): train the {what} again"
        ) from error
