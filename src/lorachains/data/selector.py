"""The selector's rows: an instruction and the task prompt, to be answered by the task's name (Chain-of-LoRA, §II-A).

The paper shows no wording. The default puts the question behind the instruction: a long instruction then loses its
beginning and never the question, and what the selector has read begins like what the expert reads.

Not in the paper: decoys. A model that was taught to name tasks readily copies a name that the instruction itself gives.
So a share of the training rows says that it is of some task, drawn at random, also in the task prompt's own words:
what an instruction says of its task is then no evidence, and what it asks for decides.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from lorachains.batch import Tokens
from lorachains.data.module import TaskDataModule
from lorachains.data.tasks import SELECTOR, Example, Task
from lorachains.data.tokens import Encoded, encode_train
from lorachains.errors import LorachainsError

AT_ONCE = 64
"""So many instructions are tokenised together."""

INSTRUCTION = "{instruction}"


@dataclass(frozen=True)
class Question:
    """What the selector is asked, and what it can answer.

    Args:
        prompt: the task prompt, with `{instruction}` where the instruction goes.
        names: each task's name as text, in the tasks' order.

    Raises:
        LorachainsError: the prompt has no place for the instruction, or ends with white space, which tokenizers merge
            with the name; or a name is empty or there twice.
    """

    prompt: str
    names: Mapping[str, str]

    def __post_init__(self) -> None:
        prompt: object = self.prompt
        if not isinstance(prompt, str) or INSTRUCTION not in prompt or prompt != prompt.rstrip():
            raise LorachainsError(
                f"method.task_prompt is {self.prompt!r}: put {INSTRUCTION} in it, and no white space at its end"
            )
        names: list[object] = list(self.names.values())
        texts = {name.strip() for name in names if isinstance(name, str)} - {""}
        if len(texts) < len(names):
            raise LorachainsError(f"method.task_names gives the names {names}: give each task a text of its own")

    def about(self, instruction: str) -> str:
        """The selector's prompt."""
        return self.prompt.replace(INSTRUCTION, instruction)

    @property
    def answers(self) -> tuple[str, ...]:
        """What can follow the prompt, in the tasks' order."""
        return tuple(f" {name.strip()}" for name in self.names.values())

    def texts(
        self, tokenizer: PreTrainedTokenizerBase, instruction: str, max_length: int, shared: int = 0
    ) -> list[Tokens]:
        """The prompt with each answer, closed by the end-of-sequence token: no name is the beginning of another."""
        return next(self.texts_of_each(tokenizer, [instruction], max_length, [shared]))

    def texts_of_each(
        self, tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], max_length: int, shared: Sequence[int]
    ) -> Iterator[list[Tokens]]:
        """The same of each instruction; of many at once, for which tokenizers use all cores."""
        for start in range(0, len(instructions), AT_ONCE):
            some = zip(instructions[start : start + AT_ONCE], shared[start : start + AT_ONCE], strict=True)
            examples = [Example(SELECTOR, self.about(text), "", SELECTOR, shared=of_base) for text, of_base in some]
            asked = [replace(example, answer=answer) for example in examples for answer in self.answers]
            texts = iter([row.choices[0] for row in encode_train(tokenizer, asked, 0, max_length)])
            for _ in examples:
                yield [next(texts) for _ in self.answers]


DECOYS = ("{name}", "Task: {name}", "This is {name}, nothing else.", "{question} {name}")


@dataclass(frozen=True)
class Decoys:
    """Which training rows say that they are of a task, and how.

    Args:
        share: of the rows.
        template: how a request becomes an instruction; the words go into the request.
        seed: which rows, tasks, words and places are drawn.

    Raises:
        LorachainsError: the share is none.
    """

    share: float
    template: str
    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.share, int | float) or not 0 <= self.share <= 1:
            raise LorachainsError(f"method.decoys is {self.share!r}: give a share from 0 to 1")

    def of(self, example: Example, question: Question) -> str:
        """An example's instruction, maybe with a decoy."""
        return self.put(example.prompt, question, example.source)

    def put(self, instruction: str, question: Question, source: str) -> str:
        """The instruction, maybe with a decoy; always the same for the same source."""
        rng = random.Random(f"{self.seed}/{source}")
        before, _, after = self.template.partition(INSTRUCTION)
        if rng.random() >= self.share or not (instruction.startswith(before) and instruction.endswith(after)):
            return instruction
        asked = instruction[len(before) : len(instruction) - len(after)]
        name = rng.choice([name.strip() for name in question.names.values()])
        words = rng.choice(DECOYS).format(name=name, question=question.about("").strip())
        parts = [words, asked] if rng.random() < 0.5 else [asked, words]
        return before + "\n".join(parts) + after


class RowsOnce:
    """What is made of a split's rows, once for all runs that have the same ones: runs side by side read them once.

    Args:
        make: from a run, its rows and the decoys to put among them.
    """

    def __init__(self, make: Callable[[TaskDataModule, Sequence[Encoded], Decoys | None], list[Encoded]]):
        self.make = make
        self._made: dict[tuple[int, Decoys | None], list[Encoded]] = {}

    def __call__(self, run: TaskDataModule, split: str, decoys: Decoys | None) -> list[Encoded]:
        rows = run.rows(split)
        if (key := (id(rows), decoys)) not in self._made:
            self._made[key] = self.make(run, rows, decoys)
        return self._made[key]


def selector_task(tasks: Sequence[Task]) -> Task:
    """The selector's own task, beside those of the experts. Names are compared by their whole log-likelihoods."""
    return Task(SELECTOR, tasks[0].read, stop=tasks[0].stop, total=True)


def selector_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    question: Question,
    max_length: int,
    decoys: Decoys | None = None,
    shared: Callable[[str], int] = lambda _: 0,
) -> list[Encoded]:
    """The selector's row of each row of any task, for the bank's adapter 0.

    Args:
        rows: whose `task` is an index of the question's names.
        decoys: of training rows, which end in the right name; other rows have all names to choose from.
        shared: how much of an instruction the base alone reads, see `Example`; nothing by default.
    """
    answers = question.answers
    asked_of = [row.example.prompt for row in rows]
    if decoys:
        asked_of = [decoys.of(row.example, question) for row in rows]
    examples = [
        Example(SELECTOR, question.about(asked), answers[row.task], row.example.source, shared=shared(asked))
        for row, asked in zip(rows, asked_of, strict=True)
    ]
    if decoys:
        return encode_train(tokenizer, examples, 0, max_length)
    parts = [example.shared for example in examples]
    texts = question.texts_of_each(tokenizer, asked_of, max_length, parts)
    return [
        Encoded(replace(example, candidates=answers), 0, choices)
        for example, choices in zip(examples, texts, strict=True)
    ]
