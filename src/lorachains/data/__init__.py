"""Tasks, rows, tokens and batches."""

from lorachains.data.module import RunsDataModule, TaskDataModule
from lorachains.data.tasks import Example, Task
from lorachains.data.tokens import EvalBatch, Serving

__all__ = ["EvalBatch", "Example", "RunsDataModule", "Serving", "Task", "TaskDataModule"]
