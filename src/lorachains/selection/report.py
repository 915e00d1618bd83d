"""How well tasks were selected: accuracy (Chain-of-LoRA, Eq. 3, Tables II and III; of each task: MoA, Tab. 3), top-k,
F1 of each task, confusion."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error


@dataclass(frozen=True)
class Confusion:
    """Which task was selected for rows of which task.

    Args:
        names: of the tasks.
        gold: each row's own.
        chosen: each row's selected one; -1 for none.
    """

    names: Sequence[str]
    gold: Sequence[int]
    chosen: Sequence[int]

    @property
    def counts(self) -> Int[np.ndarray, "tasks choices"]:
        """Rows of each task (down) for which each was selected (across); none at all in the last column."""
        table = np.zeros((len(self.names), len(self.names) + 1), dtype=int)
        np.add.at(table, (list(self.gold), list(self.chosen)), 1)
        return table

    @property
    def accuracy(self) -> float:
        """The share of rows whose task was selected, as classification accuracy is understood (not per class)."""
        return float(np.trace(self.counts) / max(1, len(self.gold)))

    def f1(self) -> dict[str, float]:
        """Each task's F1; 0 where it has no rows and was never selected."""
        right = np.diag(self.counts)
        both = self.counts.sum(1) + self.counts[:, :-1].sum(0)
        return dict(zip(self.names, (2 * right / np.maximum(both, 1)).tolist(), strict=True))

    def recall(self) -> dict[str, float]:
        """The accuracy on each task's own rows; of tasks that have some."""
        counts = self.counts
        return {name: float(row[i] / row.sum()) for i, (name, row) in enumerate(zip(self.names, counts, strict=True))
                if row.sum()}  # fmt: skip

    def write(self, folder: Path) -> None:
        """Writes `confusion.json` and `confusion.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        table = {"tasks": list(self.names), "choices": [*self.names, None], "counts": self.counts.tolist()}
        (folder / "confusion.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        self._draw(folder / "confusion.png")

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure  # not at the top: takes a while, and is needed once

        labels = 0.1 * max(len(name) for name in self.names)  # inches, as the squares' sides
        counts, size = self.counts, 1 + 0.4 * len(self.names) + labels
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(self.names) + 1), [*self.names, "(none)"], rotation=90)
        axes.set_yticks(range(len(self.names)), self.names)
        axes.set_xlabel("selected")
        axes.set_ylabel("task")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7)
        figure.savefig(path)


def top_k(scores: Tensor, gold: Sequence[int], k: int) -> float:
    """The share of rows whose task is among the k likeliest.

    Args:
        scores: `(rows, tasks)`.
    """
    best = scores.topk(min(k, scores.shape[1])).indices.tolist()
    return sum(own in row for own, row in zip(gold, best, strict=True)) / max(1, len(gold))


def calibration_error(scores: Tensor, gold: Sequence[int]) -> float:
    """How far the probability of the likeliest task is from how often it is the right one, in the mean over 15 bins of
    that probability by their rows (Guo et al. 2017, arXiv 1706.04599, Eq. 3); from 0 to 1.

    Args:
        scores: `(rows, tasks)`, log-likelihoods.
    """
    if len(gold) == 0:
        return 0.0
    right = torch.tensor(gold, device=scores.device)
    return float(multiclass_calibration_error(scores.softmax(-1), right, scores.shape[1], n_bins=15, norm="l1"))


def figures(confusion: Confusion, scores: Tensor) -> dict[str, float]:
    """What is told of a selection: `top1`, `top3`, `calibration_error`, `f1`, `f1/<task>`, and of who is to answer
    `routed_accuracy`, `<task>/accuracy` and `fallbacks`.

    Args:
        confusion: of the tasks that are to answer, if any are.
        scores: `(rows, tasks)`, log-likelihoods.
    """
    f1 = confusion.f1()
    return {
        **{f"top{k}": top_k(scores, confusion.gold, k) for k in (1, 3)},
        "calibration_error": calibration_error(scores, confusion.gold),
        "routed_accuracy": confusion.accuracy,
        "fallbacks": list(confusion.chosen).count(-1),
        **{f"{task}/accuracy": share for task, share in confusion.recall().items()},
        "f1": fmean(f1.values()),
        **{f"f1/{task}": value for task, value in f1.items()},
    }
