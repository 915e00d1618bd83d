"""Whole runs: training, validation after each epoch, and the test of the best one."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hf_peft.adapters import adapted
from hf_peft.batches import collator, columns
from hf_peft.clock import Clock
from hf_peft.training import Figures, fit
from lorachains.batch import IGNORED
from lorachains.data.module import TaskDataModule
from lorachains.data.tokens import Encoded, encode_eval, encode_train
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel


def run(
    lm: LanguageModel, data: TaskDataModule, *, settings: str, lr: float, seed: int, device: str, epochs: int = 5,
    warmup: int = 10, overrides: Mapping[str, Any] | None = None,
) -> Figures:  # fmt: skip
    """A whole run: trains, validates after each epoch, tests the best. Writes no checkpoints, which is in HF's favour.

    A candidate's score is the mean log-likelihood of its tokens, over padded batches of `data.eval_batch_size` texts
    with full logits. Raises `LorachainsError` where an example has no candidates.

    Returns:
        training, as of `train`; seconds of everything, tokenising included; evaluation_seconds; val_accuracy of each
        epoch; best_epoch, from 1; test_accuracy.
    """
    begin = time.perf_counter()
    data.setup()
    rows = {split: _encode(data, split) for split in ("train", "val", "test")}
    given = {"per_device_train_batch_size": data.batch_size, "learning_rate": lr, "seed": seed}
    given |= {"num_train_epochs": epochs} | dict(overrides or {})
    with adapted(lm, device, seed) as model:
        score = partial(accuracy, model, tokenizer=lm.tokenizer, batch_size=data.eval_batch_size)
        best = _BestEpoch(partial(score, rows["val"]), device)
        texts = [row.choices[0] for row in rows["train"]]
        training = fit(model, lm.tokenizer, texts, settings, device, warmup, given, [best])
        model.load_state_dict(best.adapter, strict=False)
        best.clock.mark()
        test_accuracy = score(rows["test"])
        best.clock.mark()
        evaluation_seconds = sum(best.clock.seconds()[::2])
    return {
        "training": training, "seconds": time.perf_counter() - begin, "evaluation_seconds": evaluation_seconds,
        "val_accuracy": best.scores, "best_epoch": best.scores.index(max(best.scores)) + 1,
        "test_accuracy": test_accuracy,
    }  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, batch_size: int) -> float:
    """How often the candidate of the highest mean log-likelihood a token is right. Leaves `model` in eval mode."""
    model.eval()
    collate = collator(tokenizer, "default")
    texts = [(row, choice) for row, encoded in enumerate(rows) for choice in range(len(encoded.choices))]
    texts.sort(key=lambda text: -len(rows[text[0]].choices[text[1]].input_ids))
    means = []
    for start in range(0, len(texts), batch_size):
        chunk = [rows[row].choices[choice] for row, choice in texts[start : start + batch_size]]
        batch = collate(columns(chunk)).to(next(model.parameters()).device)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
        answer = batch["labels"][:, 1:] != IGNORED
        means.append(-losses.view_as(answer).sum(1) / answer.sum(1))
    scores = dict(zip(texts, torch.cat(means).tolist(), strict=True))
    best = [max(range(len(row.choices)), key=lambda choice: scores[i, choice]) for i, row in enumerate(rows)]
    return fmean(choice == row.example.gold for choice, row in zip(best, rows, strict=True))


class _BestEpoch(TrainerCallback):
    """Scores each epoch, and keeps the best one's adapter (the first of equals)."""

    def __init__(self, score: Callable[[], float], device: str) -> None:
        self.score, self.clock = score, Clock(torch.device(device))
        self.scores: list[float] = []
        self.adapter: dict[str, Tensor] = {}

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()
        self.scores.append(self.score())
        if self.scores.index(max(self.scores)) == len(self.scores) - 1:
            parameters = kwargs["model"].named_parameters()
            self.adapter = {name: p.detach().clone() for name, p in parameters if p.requires_grad}
        self.clock.mark()


def _encode(data: TaskDataModule, split: str) -> list[Encoded]:
    encode = encode_train if split == "train" else encode_eval
    examples = [(task, getattr(splits, split)) for task, splits in enumerate(data.splits)]
    rows = [row for task, some in examples for row in encode(data.tokenizer, some, task, data.max_length)]
    if free := next((row.example for row in rows if not row.example.candidates), None):
        raise LorachainsError(f"{free.source} has no candidates to choose from: take a task that has, such as rte")
    return rows
