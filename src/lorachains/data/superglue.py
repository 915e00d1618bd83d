"""COLA's eleven tasks (§5), from official files or the hub: eight of SuperGLUE, SST-2, SQuAD v1.1 and DROP."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorachains.data import nested
from lorachains.data.hub import HubSet
from lorachains.data.module import TaskDataModule
from lorachains.data.prompts import TASKS
from lorachains.data.protocol import Sizes, Splits, draw
from lorachains.data.rows import Row, read_file
from lorachains.data.tasks import Task
from lorachains.errors import LorachainsError

_Read = Callable[[Path], Iterator[Row]]


@dataclass(frozen=True)
class _Origin:
    """Where a task's rows are: in the official distribution under `data.root`, and on the hub.

    Attributes:
        train, val: the names of the official file, of which the first one that is there counts.
        read: the rows of a file, with the hub's fields.
    """

    train: Sequence[str]
    val: Sequence[str]
    hub: HubSet
    read: _Read = read_file


def _superglue(
    folder: str, config: str, labels: dict[str, Any] | None, inner: str | None = None, read: _Read = read_file
) -> _Origin:
    train, val = ([f"superglue/{folder}/{split}.jsonl"] for split in ("train", "val"))
    return _Origin(train, val, HubSet("aps/super_glue", config, labels, inner), read)


_BOOLS = {"False": False, "True": True}
_WORDS = {word: word for word in ("entailment", "not_entailment", "contradiction", "neutral")}

ORIGINS = {
    "rte": _superglue("RTE", "rte", _WORDS),
    "cb": _superglue("CB", "cb", _WORDS),
    "boolq": _superglue("BoolQ", "boolq", _BOOLS),
    "wic": _superglue("WiC", "wic", _BOOLS),
    "wsc": _superglue("WSC", "wsc.fixed", _BOOLS, "target"),
    "copa": _superglue("COPA", "copa", {"choice1": 0, "choice2": 1}),
    "multirc": _superglue("MultiRC", "multirc", {"False": 0, "True": 1}, read=nested.multirc),
    "record": _superglue("ReCoRD", "record", None, read=nested.record),
    "sst2": _Origin(
        ["glue/SST-2/train.tsv"],
        ["glue/SST-2/dev.tsv"],
        HubSet("nyu-mll/glue", "sst2", {"negative": "0", "positive": "1"}),
    ),
    "squad": _Origin(
        ["squad/train-v1.1.json"], ["squad/dev-v1.1.json"], HubSet("rajpurkar/squad", "plain_text"), nested.squad
    ),
    "drop": _Origin(
        ["drop/drop_dataset_train.json", "drop/train.jsonl"],
        ["drop/drop_dataset_dev.json", "drop/dev.jsonl"],
        HubSet("ucinlp/drop", "default"),
        nested.drop,
    ),
}


class SuperGlue:
    """The tasks' rows from the official files under `root`, or from the hub where `root` is None."""

    def __init__(self, root: str | None) -> None:
        self.root = None if root is None else Path(root)

    def load(self, name: str, sizes: Sizes, seed: int) -> tuple[Task, Splits]:
        """See `Source.load`. Raises `LorachainsError` for an unknown task, a missing file, a bad row, or no network."""
        if name not in TASKS:
            raise LorachainsError(f"data.task is {name!r}: known tasks are {', '.join(TASKS)}")
        task, origin = TASKS[name], ORIGINS[name]
        if self.root is None:
            rows = [origin.hub.rows(split) for split in ("train", "validation")]
        else:
            rows = [origin.read(self._file(names, origin)) for names in (origin.train, origin.val)]
        train, val = (list(map(task.read, of_split)) for of_split in rows)
        return task, draw(name, train, val, sizes, seed)

    def _file(self, names: Sequence[str], origin: _Origin) -> Path:
        paths = [Path(self.root or "", name) for name in names]
        if found := next(filter(Path.is_file, paths), None):
            return found
        expected = " and ".join(" or ".join(of_split) for of_split in (origin.train, origin.val))
        raise LorachainsError(f"{paths[-1]}: no such file; data.root={self.root} must hold the official {expected}")


def datamodule(
    tokenizer: PreTrainedTokenizerBase, *, task: str, tasks: Sequence[str] | None, root: str | None, **settings: Any
) -> TaskDataModule:
    """The data module of `tasks`, or of the one `task` where `tasks` is None; `settings` are `TaskDataModule`'s."""
    return TaskDataModule(tokenizer, SuperGlue(root), [task] if tasks is None else tasks, **settings)
