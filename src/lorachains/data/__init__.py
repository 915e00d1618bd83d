"""Tasks, rows, tokens and batches."""

from lorachains.data.module import TaskDataModule
from lorachains.data.tasks import Example, Task
from lorachains.data.tokens import EvalBatch

__all__ = ["EvalBatch", "Example", "Task", "TaskDataModule"]
