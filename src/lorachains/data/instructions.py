"""A row of an instruction set: what is asked, the answers that are accepted, and the label of its task or domain.

The two papers on tasks and domains have the same rows: (x, y, t) in Chain-of-LoRA (IEEE SPL 2024), a domain label in
MoA (arXiv 2403.03432).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lorachains.data.exams import right_letters
from lorachains.data.rows import Row, read_document
from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)

NAMES = {
    "task": ("task", "kind", "domain", "category"),
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "output": ("output", "target", "response", "completion", "answer"),
    "conversations": ("conversations",),
    "letters": ("answer",),
}
"""Each column's usual names: Alpaca's, Firefly's, MoA's, Dolly's, ShareGPT's. The first that is there is taken."""

UNLABELLED = ""
"""The label of a row that has none."""


@dataclass(frozen=True)
class Record:
    """One row of an instruction set.

    Attributes:
        task: its label; UNLABELLED where it has none.
        instruction: what is to be done, "" where the input says it.
        input: what it is to be done with, "" where the instruction says all.
        answers: those accepted, at least one; the first is trained on.
        source: see `Row`.
        letters: of the right options of an exam question; "" for anything else.
    """

    task: str
    instruction: str
    input: str
    answers: tuple[str, ...]
    source: str
    letters: str = ""

    @property
    def request(self) -> str:
        """All that is asked: the instruction and, below it, the input."""
        return "\n".join(filter(None, (self.instruction, self.input)))


@dataclass(frozen=True)
class Columns:
    """Where a file's rows have what makes a record; None for what they don't have.

    Args:
        task: the label's column; None where all rows have the one in `label`.
        conversations: ShareGPT's turns, in place of the instruction, input and output: the first question and answer.
        letters: those of the right options, beside an output that says more.
        unlabelled: whether a row may lack its label, or have null in its place.
    """

    task: str | None = "task"
    instruction: str | None = "instruction"
    input: str | None = "input"
    output: str | None = "output"
    conversations: str | None = None
    letters: str | None = "answer"
    label: str = ""
    unlabelled: bool = False

    def record(self, row: Row) -> Record:
        """The row as a record. Raises `LorachainsError` with the row's source where a field is missing or wrong."""
        if self.conversations:
            turns = _first_turns(row, self.conversations)
            instruction, input, answers = turns.text("human").strip(), "", [turns.text("gpt").strip()]
        else:
            instruction, input = _optional(row, self.instruction), _optional(row, self.input)
            answers = _texts(row, str(self.output))
        if not (instruction or input):
            raise LorachainsError(f"{row.source}: instruction and input are empty: give one of them or delete the row")
        if not all(answers):
            raise LorachainsError(f"{row.source}: an answer is empty: give one or delete the row")
        letters = right_letters(row.values.get(self.letters)) if self.letters else ""
        accepted = tuple(dict.fromkeys(answers))
        return Record(self._label(row), instruction, input, accepted, row.source, letters)

    def _label(self, row: Row) -> str:
        column = self.task if self.task and "." not in self.task else None
        if self.unlabelled and column and row.values.get(column) in (None, ""):  # CSV has no null
            return UNLABELLED
        return check_label(row.text(self.task).strip() if self.task else self.label, row.source)


def find_columns(
    names: Iterable[str], given: Mapping[str, str | None], label: str, source: str, unlabelled: bool = False
) -> Columns:
    """The columns of a file: those given, and the usual ones of what isn't.

    Args:
        names: of all fields that its rows have.
        label: of all rows, where there is no column of labels.
        source: the file, for errors.
        unlabelled: see `Columns`.

    Raises:
        LorachainsError: a column that is given isn't there, or there is none of requests, or none of answers.
    """
    if not isinstance(given, Mapping):
        raise LorachainsError(f"data.columns is {given!r}: give names of columns, as data.columns.output=answer")
    if unknown := sorted(given.keys() - NAMES.keys()):
        raise LorachainsError(f"data.columns has {', '.join(unknown)}: choose of {', '.join(NAMES)}")
    there = list(names)
    shown = f"{source}: the columns are {', '.join(there)}"
    for what, name in given.items():
        if name and name.partition(".")[0] not in there:
            raise LorachainsError(f"{shown}, but data.columns.{what} is {name!r}: name one of them")
    found = {
        what: given.get(what) or next((name for name in usual if name in there), None) for what, usual in NAMES.items()
    }
    if found["letters"] == found["output"]:
        found["letters"] = None
    if not found["conversations"] and not (found["output"] and (found["instruction"] or found["input"])):
        raise LorachainsError(
            f"{shown}, and none is known as a request or as an answer: "
            "name them with data.columns.instruction, data.columns.input and data.columns.output"
        )
    return Columns(**found, label=label, unlabelled=unlabelled)


def records(
    rows: Iterable[Row], given: Mapping[str, str | None], label: str, source: str, unlabelled: bool = False
) -> list[Record]:
    """The records of one file's rows; see `find_columns`."""
    listed = list(rows)
    names = dict.fromkeys(name for row in listed for name in row.values)
    return list(map(find_columns(names, given, label, source, unlabelled).record, listed)) if listed else []


def superni_rows(path: Path, definition: bool) -> Iterator[Row]:
    """The instances of a Super-NaturalInstructions task file (Wang et al. 2022) as rows, labelled by the file's name.

    Instances with an empty input, which some official files have, are left out.

    Args:
        definition: whether the task's definition is their instruction; it gives the task away.

    Raises:
        LorachainsError: it isn't such a file.
    """
    task = read_document(path)
    texts = task.texts("Definition") if definition else []
    empty = 0
    for instance in task.rows("Instances"):
        if str(instance.values.get("input") or "").strip():
            values = {"task": path.stem, "instruction": "\n".join(texts), **instance.values}
            yield Row(values, instance.source)
        else:
            empty += 1
    if empty:
        log.warning("%s: %d instances left out, whose input is empty", path.name, empty)


def _optional(row: Row, column: str | None) -> str:
    """The column's text, "" where the row has none."""
    absent = column is None or ("." not in column and row.values.get(column) is None)
    return "" if absent else row.text(str(column)).strip()


def _texts(row: Row, column: str) -> list[str]:
    """The texts of a column that holds one, or a list of them."""
    value = row.values.get(column)
    texts = row.texts(column) if isinstance(value, list) else [row.text(column)]
    return [text.strip() for text in texts]


def _first_turns(row: Row, column: str) -> Row:
    """The first turn of a human that gets a reply, and the reply."""
    turns = row.values.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise LorachainsError(f"{row.source}: field '{column}' is no list of turns: correct or delete the row")
    said = [(turn.get("from"), turn.get("value")) for turn in turns]
    for (speaker, question), (other, answer) in pairwise(said):
        if (speaker, other) == ("human", "gpt"):
            return Row({"human": question, "gpt": answer}, row.source)
    raise LorachainsError(f"{row.source}: no turn of 'human' is followed by one of 'gpt': correct or delete the row")


RESERVED = (
    ".", "..", "README.md", "mixture.json", "router.safetensors", "chain.json", "selector.json",
    "oracle", "routed", "router", "selector",
)  # fmt: skip
"""Names that a run's folders have for something else, or its metrics."""


def check_label(label: str, source: str) -> str:
    """A task's label, which names a folder of the run, and metrics.

    Raises:
        LorachainsError: it can't.
    """
    if not label or label in RESERVED or set(label) & set("/\\\0\n"):
        raise LorachainsError(
            f"{source}: the task label is {label!r}: it names a folder and metrics, so give one that isn't empty, has "
            f"no slash, and is none of {', '.join(RESERVED)}"
        )
    return label
