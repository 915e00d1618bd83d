"""Who can select a task for a chain of LoRAs, beside the chain's own selector."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorachains.answering.folder import ChainFile
from lorachains.answering.replies import Choice
from lorachains.errors import LorachainsError
from lorachains.selection.trie import probabilities, select


class Selector(Protocol):
    """Says of instructions which task they ask for."""

    def select(self, texts: Sequence[str], k: int = 1, batch_size: int = 16) -> list[Choice]:
        """The task of each instruction, as a user writes it, and the k likeliest ones."""
        ...


class Classifier:
    """An encoder with a label for each task ("BERT-SFT", Chain-of-LoRA, Table III).

    Args:
        folder: the encoder's, as transformers saves it.
        settings: of the chain; its names are the encoder's labels, in their order.

    Raises:
        LorachainsError: the encoder can't be read, or is to generate.
    """

    def __init__(self, folder: Path, settings: ChainFile, device: torch.device) -> None:
        if settings.selection == "generate":
            raise LorachainsError(f"{folder} is a classifier, which generates no text: choose selection=exact")
        try:
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise LorachainsError(f"{folder} can't be read as a classifier ({reason}): train it again") from error
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        if labels != settings.tasks:
            raise LorachainsError(
                f"{folder} has the labels {', '.join(labels)}, but its run's are {', '.join(settings.tasks)}: "
                "copy the run's folder again"
            )
        self.model, self.settings = model.eval().to(device), settings

    def select(self, texts: Sequence[str], k: int = 1, batch_size: int = 16) -> list[Choice]:
        """See `Selector`."""
        found: list[Choice] = []
        for start in range(0, len(texts), batch_size):
            begun = time.perf_counter()
            some = choices(self.scores(texts[start : start + batch_size]), k, self.settings)
            seconds = time.perf_counter() - begun
            found += [replace(choice, seconds=seconds) for choice in some]
        return found

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> Float[Tensor, "rows tasks"]:
        """The logit of each task; a long text loses its beginning."""
        cut = {"truncation": True, "max_length": self.settings.max_length}
        batch = self.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt", **cut)
        logits: Tensor = self.model(**batch.to(self.model.device)).logits
        return logits.double().cpu()


def choices(scores: Float[Tensor, "rows tasks"], k: int, settings: ChainFile) -> list[Choice]:
    """The k likeliest tasks of each row, and who is to answer it: the fallback where the first isn't to be trusted.

    Args:
        scores: log-likelihoods of the tasks, up to a number for each row.
    """
    return [
        Choice(
            settings.tasks[best.names[0]] if best.sure else settings.fallback,
            tuple(settings.tasks[i] for i in best.names), tuple(best.probabilities),
        )
        for best in select(probabilities(scores), k, settings.threshold)
    ]  # fmt: skip
