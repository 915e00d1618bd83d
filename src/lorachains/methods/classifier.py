"""An encoder classifier in the selector's or router's place: "BERT-SFT" (Chain-of-LoRA, IEEE SPL 2024, Table III), "a
specific classifier" (MoA, arXiv 2403.03432, Tab. 3).

All weights of a pretrained encoder are trained, with a new head over the data's tasks or domains. It sees the
instructions of the rows that a selector or router sees: of the base (`model`) the tokenizer alone is used, by which
rows are left out that are too long. The papers say no more than BERT-base (Chain-of-LoRA), and give no
hyper-parameters.

What differs from a language model: long texts are cut to the encoder's own length (512 tokens for BERT).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lorachains.batch import TokenBatch
from lorachains.data.classifier import classifier_rows
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.selector import Decoys
from lorachains.data.tokens import Encoded, EvalBatch
from lorachains.evaluation import candidate_losses
from lorachains.methods.full import Full
from lorachains.methods.selectors import Selecting
from lorachains.models import LanguageModel, WheelFolder, load_encoder
from lorachains.models.encoder import longest
from lorachains.run_folder import RunFolder
from lorachains.scoring import mean_per_group


class Classifier(Selecting, Full):
    """Trains an encoder to tell the task of an instruction; one run alone.

    Args:
        base: whose tokenizer the data's rows were read with; its weights aren't used.
        encoder: a hub name or a folder, see `load_encoder`.
        wheels: see `load_encoder`.
        seed: of the head and of dropout.
        others: see `Selecting` and `Full`.

    Raises:
        LorachainsError: the encoder can't be had, or a setting can't be followed.
    """

    def __init__(
        self, *, base: LanguageModel, encoder: str, names: Sequence[str], seed: int | Sequence[int],
        wheels: Mapping[str, WheelFolder] | None = None, **kwargs: Any,
    ):  # fmt: skip
        first = seed if isinstance(seed, int) else seed[0]
        super().__init__(base=load_encoder(encoder, names, first, wheels=wheels), names=names, seed=seed, **kwargs)

    # -- data ----------------------------------------------------------------------------------------------------------

    def reads(self, data: RunsDataModule) -> RunsDataModule:
        """The classifier's rows; all labels of a text cost one pass, so that as many more fit into a batch."""
        found = super().reads(data)
        for run in found.runs:
            run.eval_batch_size *= len(self.question.names)
        return found

    def asked(self, run: TaskDataModule, rows: Sequence[Encoded], decoys: Decoys | None) -> list[Encoded]:
        length = self.reach(run) + 1
        return classifier_rows(self.base.tokenizer, rows, self.question, run.template, length, decoys)

    def reach(self, run: TaskDataModule) -> int:
        return min(run.max_length, longest(self.model, self.base.tokenizer)) - 1  # and the label stands behind it

    def generated(self, run: int, rows: Sequence[Encoded]) -> dict[str, float]:
        """Nothing: it generates no text."""
        return {}

    # -- passes --------------------------------------------------------------------------------------------------------

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        labels = self._label_losses(batch)
        return {"label": mean_per_group(labels, batch.served, self.serving.bank, batch.targets)}

    @torch.no_grad()
    def answers(self, batch: EvalBatch) -> tuple[Tensor, list[str]]:
        return candidate_losses(batch.scored, self._label_losses(batch.scored)), []

    def _label_losses(self, batch: TokenBatch) -> Float[Tensor, " labels"]:
        """The negative log-likelihood (nats) of each label, given the text before it."""
        padded = batch.padded()
        mask, pad = padded.attention_mask, self.base.tokenizer.pad_token_id
        ids = padded.input_ids.masked_fill(mask == 0, pad)  # of which some architectures make something
        logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
        return F.cross_entropy(logits[padded.positions // ids.shape[1]], batch.targets, reduction="none")

    # -- what is kept --------------------------------------------------------------------------------------------------

    def place(self, folder: RunFolder) -> Path:
        return folder.classifier
