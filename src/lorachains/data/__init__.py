"""Tasks, rows, tokens and batches."""

from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.tasks import Example, Metric, Task
from lorachains.data.tokens import EvalBatch, Serving

__all__ = ["EvalBatch", "Example", "Metric", "RunsDataModule", "Serving", "Task", "TaskDataModule"]
