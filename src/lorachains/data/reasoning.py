"""Tasks of the `reasoning_gym` package: rows are made up from a seed, so neither files nor a network are needed."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from lorachains.data.module import TaskDataModule
from lorachains.data.protocol import Sizes, Splits
from lorachains.data.rows import Row
from lorachains.data.tasks import Example, Task
from lorachains.errors import LorachainsError

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

# Tasks whose answers are always one of a few words, which can so be scored by comparing the candidates.
_CANDIDATES = {
    "acre": ("on", "off", "undetermined"),
    "circuit_logic": ("0", "1"),
    "course_schedule": ("True", "False"),
    "game_of_life_halting": ("True", "False"),
    "mahjong_puzzle": ("Peng", "Chi", "Pass"),
    "syllogism": ("Yes", "No"),
}

# They iterate over sets of strings, so each process draws other rows from the same seed: no run could be resumed.
_NOT_REPRODUCIBLE = {
    "intermediate_integration",
    "isomorphic_strings",
    "knight_swap",
    "list_functions",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}

_ATTEMPTS_PER_ROW = 10


PROMPT = "{instruction}\nAnswer:"


class ReasoningGym:
    """Draws each split of a task from its own seed, and leaves out a question that was drawn before.

    Args:
        candidates: the closed set of answers of every task; None for the known tasks' own, free answers for the others.
        options: task name to the options of its `reasoning_gym` config, which set how hard it is.
    """

    template = PROMPT

    def __init__(self, candidates: Sequence[object] | None, options: Mapping[str, Mapping[str, Any]]) -> None:
        self.candidates = None if candidates is None else tuple(str(candidate) for candidate in candidates)
        self.options = options

    def load(self, name: str, sizes: Sizes, seed: int) -> tuple[Task, Splits]:
        """See `Source.load`. Raises `LorachainsError` too where the task has too few different questions."""
        _check_name(name)
        wanted = {"train": sizes.train, "val": sizes.val, "test": sizes.test}
        task = _task(
            name, _dataset(name, 1, 0, self.options.get(name, {})), self.candidates or _CANDIDATES.get(name, ())
        )
        seen: set[str] = set()
        splits = {
            split: [task.read(row) for row in self._draw(name, split, size, seed, seen)]
            for split, size in wanted.items()
        }
        return task, Splits(**splits)

    def _draw(self, name: str, split: str, size: int, seed: int, seen: set[str]) -> Iterator[Row]:
        """`size` rows with questions not in `seen`, which then holds theirs too."""
        # a far-off seed for each split: row i of a dataset is made from its seed + i, so neighbouring seeds share rows
        far_seed = random.Random(f"{seed}/{name}/{split}").getrandbits(31)
        dataset = _dataset(name, size * _ATTEMPTS_PER_ROW, far_seed, self.options.get(name, {}))
        before = len(seen)
        for index in range(size * _ATTEMPTS_PER_ROW):
            if len(seen) == before + size:
                return
            row = Row(dataset[index], f"reasoning_gym:{name}#{far_seed}+{index}")
            if (question := row.text("question").strip()) not in seen:
                seen.add(question)
                yield row
        if len(seen) < before + size:
            raise LorachainsError(
                f"reasoning_gym task '{name}' gave {len(seen) - before} new questions for data.{split}_size={size}: "
                f"lower the sizes, widen data.options.{name}, or choose another task"
            )


def _check_name(name: str) -> None:
    from reasoning_gym.factory import DATASETS  # not at the top: takes a second, and only this source needs it

    known = sorted(set(DATASETS) - _NOT_REPRODUCIBLE - {"composite"})  # `composite` is no task but a mixture of tasks
    if name in _NOT_REPRODUCIBLE:
        raise LorachainsError(
            f"data.task is {name!r}: reasoning_gym draws it differently in each process; choose another task"
        )
    if name not in known:
        raise LorachainsError(f"data.task is {name!r}: known reasoning_gym tasks are {', '.join(known)}")


def _dataset(name: str, size: int, seed: int, options: Mapping[str, Any]) -> "ProceduralDataset":
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:  # an unknown option, or a value that the task refuses
        raise LorachainsError(
            f"data.options.{name} is {dict(options)}: reasoning_gym says {' '.join(str(error).split())!r}"
        ) from error


def _task(name: str, dataset: "ProceduralDataset", words: tuple[str, ...]) -> Task:
    candidates = tuple(f" {word}" for word in words)
    entries: dict[str, Mapping[str, Any]] = {}  # reasoning_gym's scorers need the row's metadata

    def read(row: Row) -> Example:
        entries[row.source] = row.values
        answer = f" {row.text('answer')}"
        if candidates and answer not in candidates:
            raise LorachainsError(
                f"{row.source}: the answer is {answer[1:]!r}, not one of data.candidates={list(words)}"
            )
        return Example(name, PROMPT.format(instruction=row.text("question").strip()), answer, row.source, candidates)

    def score(prediction: str, example: Example) -> float:
        try:
            return float(dataset.score_answer(prediction.strip(), entries[example.source]))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return 0.0  # a scorer that can't parse the prediction

    return Task(name, read) if candidates else Task(name, read, {"score": score})


def datamodule(
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: str,
    tasks: Sequence[str] | None,
    candidates: Sequence[object] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
    **settings: Any,
) -> TaskDataModule:
    """The data module of `tasks`, or of the one `task` where `tasks` is None; `settings` are `TaskDataModule`'s."""
    if not isinstance(options or {}, Mapping) or not all(isinstance(of, Mapping) for of in (options or {}).values()):
        raise LorachainsError(
            f"data.options is {options!r}: give options by task, as {{leg_counting: {{max_animals: 4}}}}"
        )
    if candidates is not None and not (isinstance(candidates, list | tuple) and len(candidates) > 1):
        raise LorachainsError(f"data.candidates is {candidates!r}: give a list of two answers or more, or null")
    module = TaskDataModule(
        tokenizer, ReasoningGym(candidates, options or {}), [task] if tasks is None else tasks, **settings
    )
    if unused := set(options or {}) - set(module.task_names):
        names = ", ".join(module.task_names)
        raise LorachainsError(f"data.options has {', '.join(sorted(unused))}, not among the tasks {names}: remove it")
    return module
