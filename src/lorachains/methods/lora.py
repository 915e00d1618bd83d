"""Plain LoRA (Hu et al. 2021), and the frame of every method here: a chain of E adapters trained at once.

What belongs to one adapter is a row of a vector over the bank: its loss, learning rate, gradient norm, validation score
and best epoch. The adapters share no trainable parameter, so the sum of their losses trains each as if it were alone,
as long as each has rows in every batch (without any, an optimizer with momentum still moves it).
"""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.callbacks.best import BestEpoch
from lorachains.chain import Chain
from lorachains.data import EvalBatch, Task, TaskDataModule
from lorachains.errors import LorachainsError
from lorachains.evaluation import Prediction, predict, summarise
from lorachains.models import LanguageModel
from lorachains.optim import AdapterRates, Optim, clip_per_adapter
from lorachains.routing import HardRoute, Route
from lorachains.scoring import answer_losses, mean_per_group

DROPOUT_SEED = 1 << 52
"""Keeps the seeds of dropout apart from those of the adapters' `A`."""


class Lora(L.LightningModule):
    """Trains the adapters of a chain on answer tokens.

    Args:
        base: the frozen model and its tokenizer. Its targeted layers are replaced, in place.
        adapter: the adapters' PEFT config.
        optim: the optimizer recipe.
        seed: of the run: adapter e is initialised from `seed + e`, dropout from `seed` and the number of the batch.
        names: the adapters'; with several, adapter i serves the rows of task i.
        select: the best epoch's criterion: the validation metric ("metric"), the validation loss ("loss"), or
            simply the last epoch ("last").

    Raises:
        LorachainsError: a config that a bank can't follow.
    """

    def __init__(
        self, base: LanguageModel, adapter: LoraConfig, optim: Optim, seed: int,
        names: Sequence[str] = ("adapter",), select: str = "metric",
    ):  # fmt: skip
        super().__init__()
        self.base, self.model = base, base.model
        self.chain = Chain(base.model, adapter, [seed + expert for expert in range(len(names))])
        self.optim, self.seed, self.names = optim, seed, list(names)
        self.best = BestEpoch(select)
        self.predictions: dict[str, list[Prediction]] = {}
        if len(optim.peak()) not in (1, self.chain.experts):
            raise LorachainsError(
                f"optim.lr gives {len(optim.peak())} learning rates for {self.chain.experts} adapters: "
                "give one, or one each"
            )

    # -- what a method overrides ---------------------------------------------------------------------------------------

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        """The terms of each adapter's loss by name; their sum over terms and adapters is differentiated."""
        tokens = answer_losses(self.model, batch)
        return {"lm": mean_per_group(tokens, self.adapter_of(batch)[batch.answer_row], self.chain.experts)}

    def adapter_of(self, batch: TokenBatch) -> Tensor:
        """`(rows,)`: the adapter that serves each row."""
        return batch.task if self.chain.experts > 1 else torch.zeros_like(batch.task)

    def route(self, batch: TokenBatch) -> Route:
        """The route of a forward pass over the batch."""
        return HardRoute(self.adapter_of(batch)) if self.chain.experts > 1 else None

    def rate_factor(self, step: int) -> float:
        """The share of the peak learning rate at which the optimizer step after `step` steps is made."""
        return self.optim.factor(step, self.total_steps)

    # -- the span of the run, in optimizer steps -----------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise LorachainsError(
                "trainer.max_epochs and trainer.max_steps are both unlimited: set one, the schedule needs an end"
            )
        return int(total)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last may accumulate fewer batches."""
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    # -- training ------------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[L.Callback]:
        return [self.best]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optim.build(self.chain.parameters())
        peak = self.optim.peak()
        rates = peak if len(peak) > 1 else peak * self.chain.experts
        self._peak = torch.tensor(rates, device=self.device, dtype=self.chain.parameters()[0].dtype)
        self._rates = AdapterRates(optimizer, self._peak)
        return optimizer

    def on_fit_start(self) -> None:
        self.data.check_fits(getattr(self.model.config, "max_position_embeddings", None))
        self.model.train()  # `from_pretrained` leaves it in evaluation mode, and so would Lightning: without dropout

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        # The random numbers of a batch depend on the seed and its number alone, so a resumed run draws the same ones.
        torch.manual_seed(DROPOUT_SEED + self.seed * 1_000_003 + self.trainer.fit_loop.epoch_loop.total_batch_idx)
        factor = self.rate_factor(self.trainer.global_step)
        self._rates.rates = self._peak * factor
        self.log("train/lr", self.optim.peak()[0] * factor, prog_bar=True)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        self.chain.route = self.route(batch)
        terms = self.losses(batch)
        total = torch.stack(list(terms.values())).sum(0)
        self._log_rows("train/loss", total, prog_bar=True)
        if len(terms) > 1:
            for name, term in terms.items():
                self._log_rows(f"train/{name}", term)
        return total.sum()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            norms = clip_per_adapter(self.chain.parameters(), gradient_clip_val)
            self._log_rows("train/gradient_norm", norms)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> TaskDataModule:
        """The data module at hand."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def tasks(self) -> list[Task]:
        """The tasks of the data at hand."""
        return self.data.tasks

    def adapter_summaries(self, split: str) -> list[dict[str, float]]:
        """Each adapter's metrics over the split's last predictions, as `summarise` names them."""
        if self.chain.experts == 1:
            return [summarise(self.predictions[split], self.tasks)]
        return [summarise([p for p in self.predictions[split] if p.task == t.name], [t]) for t in self.tasks]

    def on_validation_epoch_start(self) -> None:
        self.predictions["val"] = []

    def on_test_epoch_start(self) -> None:
        self.predictions["test"] = []

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self.predictions["val"] += self.predict_step(batch, batch_idx)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self.predictions["test"] += self.predict_step(batch, batch_idx)

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> list[Prediction]:
        def set_route(rows: TokenBatch) -> None:
            self.chain.route = self.route(rows)

        return predict(self.model, self.base.tokenizer, batch, self.tasks, self.data.max_new_tokens, set_route)

    def on_validation_epoch_end(self) -> None:
        self._log_summary("val")
        if all(not math.isfinite(summary["loss"]) for summary in self.adapter_summaries("val")):
            raise LorachainsError(
                f"val/loss is not finite after optimizer step {self.trainer.global_step}: training has diverged; "
                f"lower optim.lr ({self.optim.lr}) or set trainer.gradient_clip_val"
            )

    def on_test_epoch_end(self) -> None:
        self._log_summary("test")

    def _log_summary(self, split: str) -> None:
        for key, value in summarise(self.predictions[split], self.tasks).items():
            self.log(f"{split}/{key}", value, prog_bar=split == "val" and "/" not in key)

    def _log_rows(self, name: str, rows: Float[Tensor, " experts"], prog_bar: bool = False) -> None:
        if len(rows) == 1:
            self.log(name, rows[0].detach(), prog_bar=prog_bar)
            return
        for adapter, value in zip(self.names, rows.detach(), strict=True):
            self.log(f"{name}/{adapter}", value)

    # -- checkpoints: what is trained and the ledger, never the base ---------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The chain's own tensors."""
        return self.chain.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Takes over a chain's own tensors.

        Raises:
            LorachainsError: they are of another model or adapter config.
        """
        self.chain.load_state_dict(state_dict)
