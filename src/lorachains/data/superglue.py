"""Six SuperGLUE tasks and SST-2 in MeZO's prompts (Malladi et al. 2023, arXiv 2305.17333), which COLA §A.1 takes over.

The wording, the answer words and their order are those of MeZO's code. The space before an answer word belongs to the
answer, so that a prompt never ends in a space; the text that the model reads is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorachains.data.hub import HubSet
from lorachains.data.module import TaskDataModule
from lorachains.data.protocol import Sizes, Splits, draw
from lorachains.data.rows import Row, read_file
from lorachains.data.tasks import Example, Task
from lorachains.errors import LorachainsError

_Prompt = Callable[[Row], str]


def _classification(name: str, prompt: _Prompt, answers: dict[Any, str]) -> Task:
    """A task whose rows all have the same candidates, `answers`, each of which stands for a label."""

    def read(row: Row) -> Example:
        answer = row.label("label", answers)
        return Example(name, prompt(row), answer, row.source, tuple(answers.values()))

    return Task(name, read)


def _rte(row: Row) -> str:
    return f'{row.text("premise")}\nDoes this mean that "{row.text("hypothesis")}" is true? Yes or No?\n'


def _cb(row: Row) -> str:
    return f'Suppose {row.text("premise")} Can we infer that "{row.text("hypothesis")}"? Yes, No, or Maybe?\n'


def _boolq(row: Row) -> str:
    question = row.text("question").removesuffix("?") + "?"
    return f"{row.text('passage')} {question[0].upper()}{question[1:]}\n"


def _wic(row: Row) -> str:
    question = f'Does the word "{row.text("word")}" have the same meaning in these two sentences? Yes, No?'
    return f"{question}\n{row.text('sentence1')}\n{row.text('sentence2')}\n"


def _wsc(row: Row) -> str:
    text, noun, pronoun = row.text("text"), row.text("target.span1_text"), row.text("target.span2_text")
    question = f'does the pronoun "{_as_in(text, pronoun).lower()}" refer to {_as_in(text, noun)}? Yes or No?'
    return f"{text}\nIn the previous sentence, {question}\n"


def _as_in(text: str, span: str) -> str:
    """The span as it stands in the text (the hub's `wsc.fixed`): the official files have some in another case."""
    plain = span.replace("\n", " ").rstrip(".")
    variants = (span, plain, plain[:1].swapcase() + plain[1:])
    return next((variant for variant in variants if variant in text), span)


def _sst2(row: Row) -> str:
    return f"{row.text('sentence').strip()} It was"


_CONJUNCTIONS = {"cause": "because", "effect": "so"}


def _copa(row: Row) -> Example:
    premise = row.text("premise").rstrip().removesuffix(".")
    prompt = f"{premise} {row.label('question', _CONJUNCTIONS)}"
    candidates = tuple(f" {_inside_a_sentence(row.text(choice))}" for choice in ("choice1", "choice2"))
    return Example("copa", prompt, row.label("label", dict(enumerate(candidates))), row.source, candidates)


def _inside_a_sentence(choice: str) -> str:
    first, space, rest = choice.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


@dataclass(frozen=True)
class _Origin:
    """Where a task's rows are: in the official distribution under `data.root`, and on the hub."""

    train: str
    val: str
    hub: HubSet


def _superglue(folder: str, config: str, labels: dict[str, Any], nested: str | None = None) -> _Origin:
    hub = HubSet("aps/super_glue", config, labels, nested)
    return _Origin(f"superglue/{folder}/train.jsonl", f"superglue/{folder}/val.jsonl", hub)


_BOOLS = {"False": False, "True": True}
_WORDS = {word: word for word in ("entailment", "not_entailment", "contradiction", "neutral")}
_SST2 = _Origin(
    "glue/SST-2/train.tsv", "glue/SST-2/dev.tsv", HubSet("nyu-mll/glue", "sst2", {"negative": "0", "positive": "1"})
)

TASKS: dict[str, tuple[Task, _Origin]] = {
    "rte": (
        _classification("rte", _rte, {"entailment": "Yes", "not_entailment": "No"}),
        _superglue("RTE", "rte", _WORDS),
    ),
    "cb": (
        _classification("cb", _cb, {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"}),
        _superglue("CB", "cb", _WORDS),
    ),
    "boolq": (_classification("boolq", _boolq, {True: "Yes", False: "No"}), _superglue("BoolQ", "boolq", _BOOLS)),
    "wic": (_classification("wic", _wic, {False: "No", True: "Yes"}), _superglue("WiC", "wic", _BOOLS)),
    "wsc": (_classification("wsc", _wsc, {False: "No", True: "Yes"}), _superglue("WSC", "wsc.fixed", _BOOLS, "target")),
    "copa": (Task("copa", _copa), _superglue("COPA", "copa", {"choice1": 0, "choice2": 1})),
    "sst2": (_classification("sst2", _sst2, {"0": " terrible", "1": " great"}), _SST2),
}


class SuperGlue:
    """The tasks' rows from the official files under `root`, or from the hub where `root` is None."""

    def __init__(self, root: str | None) -> None:
        self.root = None if root is None else Path(root)

    def load(self, name: str, sizes: Sizes, seed: int) -> tuple[Task, Splits]:
        """See `Source.load`. Raises `LorachainsError` for an unknown task, a missing file, a bad row, or no network."""
        if name not in TASKS:
            raise LorachainsError(f"data.task is {name!r}: known tasks are {', '.join(TASKS)}")
        task, origin = TASKS[name]
        if self.root is None:
            train, val = (list(map(task.read, origin.hub.rows(split))) for split in ("train", "validation"))
        else:
            train, val = (self._examples(task, self.root / file, origin) for file in (origin.train, origin.val))
        return task, draw(name, train, val, sizes, seed)

    def _examples(self, task: Task, path: Path, origin: _Origin) -> list[Example]:
        if not path.is_file():
            raise LorachainsError(
                f"{path}: no such file; data.root={self.root} must hold the official {origin.train} and {origin.val}"
            )
        return [task.read(row) for row in read_file(path)]


def datamodule(
    tokenizer: PreTrainedTokenizerBase, *, task: str, tasks: Sequence[str] | None, root: str | None, **settings: Any
) -> TaskDataModule:
    """The data module of `tasks`, or of the one `task` where `tasks` is None; `settings` are `TaskDataModule`'s."""
    return TaskDataModule(tokenizer, SuperGlue(root), tasks or [task], **settings)
