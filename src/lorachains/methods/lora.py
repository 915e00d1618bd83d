"""Plain LoRA (Hu et al. 2021), and the frame of every method here: a chain of E adapters trained at once.

What belongs to one adapter is a row of a vector over the bank: its loss, learning rate, gradient norm, validation score
and best epoch. The adapters share no trainable parameter, so the sum of their losses trains each as if it were alone,
as long as each has rows in every batch (without any, an optimizer with momentum still moves it). That holds for the
experts of one run and for several runs side by side, which differ in seed, learning rate or alpha: one run is a group
of one.
"""

import logging
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.callbacks.best import BestEpoch
from lorachains.chain import Chain
from lorachains.data import EvalBatch, RunsDataModule, Serving
from lorachains.data.batching import Share
from lorachains.errors import LorachainsError
from lorachains.evaluation import Prediction, predict, summarise
from lorachains.methods.journal import Journal
from lorachains.methods.passes import Passes
from lorachains.models import LanguageModel
from lorachains.optim import AdapterRates, Optim, alike, build, clip_per_adapter
from lorachains.packing import hard_route, packs
from lorachains.parallel import add_up, interleaved
from lorachains.scoring import answer_losses, mean_per_group

log = logging.getLogger(__name__)

DROPOUT_SEED = 1 << 52
"""Keeps the seeds of dropout apart from those of the adapters' `A`."""


class Lora(L.LightningModule):
    """Trains the adapters of a chain on answer tokens.

    Args:
        base: the frozen model and its tokenizer. Its targeted layers are replaced, in place.
        adapter: the adapters' PEFT config; one for each run if they differ in `lora_alpha`.
        optim: the optimizer recipe; one for each run if they differ.
        seed: of each run: its adapter e is initialised from `seed + e`, dropout from the first run's `seed` and the
            number of the batch.
        names: the adapters of each run; with several, adapter i serves the rows of task i.
        select: the best epoch's criterion: the validation metric ("metric"), the validation loss ("loss"), or
            simply the last epoch ("last").

    Attributes:
        predictions: split to the last predictions of each run.
        failures: run to the error that ended its training; the others go on.
        settled: the runs whose test results are logged already.

    Raises:
        LorachainsError: a config that a bank can't follow.
    """

    def __init__(
        self, base: LanguageModel, adapter: LoraConfig | Sequence[LoraConfig], optim: Optim | Sequence[Optim],
        seed: int | Sequence[int], names: Sequence[str] = ("adapter",), select: str = "metric",
    ):  # fmt: skip
        super().__init__()
        self.base, self.model, self.names = base, base.model, list(names)
        self.seeds = [seed] if isinstance(seed, int) else list(seed)
        runs, experts = len(self.seeds), len(self.names)
        self.serving = Serving(runs, experts)
        self.optims = [optim] * runs if isinstance(optim, Optim) else list(optim)
        adapters = [adapter] * runs if isinstance(adapter, LoraConfig) else list(adapter)
        configs = [config for config in adapters for _ in self.names]
        self.chain = Chain(base.model, configs, [s + expert for s in self.seeds for expert in range(experts)])
        self.best = BestEpoch(select)
        self.predictions: dict[str, list[list[Prediction]]] = {}
        self.failures: dict[int, LorachainsError] = {}
        self.settled: set[int] = set()
        self.journal = Journal(self)
        self.passes = Passes(self)
        self._peak = torch.tensor(
            [rate for recipe in self.optims for rate in _peak(recipe, experts)], dtype=torch.float64
        )

    # -- what a method overrides ---------------------------------------------------------------------------------------

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        """The terms of each adapter's loss by name; their sum over terms and adapters is differentiated."""
        tokens = answer_losses(self.model, batch)
        return {"lm": mean_per_group(tokens, batch.served, self.chain.experts, batch.targets)}

    def route(self, batch: TokenBatch) -> None:
        """Sets the chain's route for a forward pass over the batch."""
        self.chain.route = hard_route(self.model, batch)

    def rate_factor(self, optim: Optim, step: int) -> float:
        """The share of the peak learning rate at which the optimizer step after `step` steps is made."""
        return optim.factor(step, self.total_steps)

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

    def setup(self, stage: str) -> None:
        share = Share(self.trainer.global_rank, self.trainer.world_size)
        self.data.serve(self.serving, not packs(self.model), share)

    def cpu(self) -> "Lora":
        """Does nothing: Lightning would move the model away after each fit or test, and from under its graphs."""
        return self

    def configure_callbacks(self) -> list[L.Callback]:
        return [self.best]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipes = [recipe for recipe in self.optims for _ in self.names]
        self.chain.flatten()
        self.chain.split(alike(recipes))
        optimizer = self.fresh_optimizer()
        self._peak = self._peak.to(self.device, self.chain.flat[0].dtype)
        self._rates = AdapterRates(optimizer, self._peak)
        return optimizer

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer over the chain's live links that has made no step yet."""
        return build([recipe for recipe in self.optims for _ in self.names], self.chain.flat)

    def on_fit_start(self) -> None:
        for run in self.data.runs:
            run.check_fits(getattr(self.model.config, "max_position_embeddings", None))
        self.model.train()  # `from_pretrained` leaves it in evaluation mode, and so would Lightning: without dropout
        settings = self.model.config.to_dict()  # some architectures have functions for dropout, and no modules
        self._dropout = any(value for name, value in settings.items() if "drop" in name) or any(
            isinstance(module, torch.nn.Dropout) and module.p for module in self.model.modules()
        )
        if self._dropout and len(self.seeds) > 1:
            log.warning("dropout draws other numbers for runs side by side than for each alone")
        self.passes.prepare(str(getattr(self.trainer, "compile", "false")))

    def on_train_start(self) -> None:
        self.journal.begin()
        self.plan_rates()
        self.passes.rehearse()

    def plan_rates(self) -> None:
        """Lays out the learning rates of all optimizer steps, so that none of them is computed on the way."""
        total = self.total_steps
        factors = [[self.rate_factor(recipe, step) for recipe in self.optims] for step in range(total)]
        self.factors = torch.tensor(factors, dtype=torch.float64).repeat_interleave(len(self.names), 1)
        self._rates_at = self._peak * self.factors.to(self.device, self._peak.dtype)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.passes.place(batch, device)

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        step = self.trainer.global_step
        if self._dropout:
            # The random numbers of a batch depend on the seed and its number alone: a resumed run draws the same ones.
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            torch.manual_seed((self.global_rank << 54) + DROPOUT_SEED + self.seeds[0] * 1_000_003 + number)
        self._rates.rates = self._rates_at[step]
        self.journal.note("train/lr", lambda: self._rates_at[step])
        self.journal.note("link", lambda: torch.full_like(self._peak, len(self.chain.ranks) + 1))

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        terms, self._gradient = self.passes.train(batch)
        total = torch.stack(list(terms.values())).sum(0)
        self.journal.note("train/loss", lambda: add_up(total))
        if len(terms) > 1:
            for name, term in terms.items():
                self.journal.note(f"train/{name}", lambda term=term: add_up(term))  # type: ignore[misc]
        return total.sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Takes the gradient that `training_step` has computed along with the losses."""
        self.chain.add_gradient(self._gradient, 1 / self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for rows in self.chain.flat:
            if rows.grad is not None:
                add_up(rows.grad)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            norms = clip_per_adapter(self.chain.flat, gradient_clip_val)
            self.journal.note("train/gradient_norm", lambda: norms)

    def on_train_batch_end(self, outputs: Any, batch: TokenBatch, batch_idx: int) -> None:
        self.journal.close_step()

    def on_train_epoch_end(self) -> None:
        self.journal.write()

    # -- evaluation ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> RunsDataModule:
        """The data module at hand."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def adapter_summaries(self, split: str) -> list[dict[str, float]]:
        """Each adapter's metrics over the split's last predictions, as `summarise` names them."""
        summaries = []
        for run, predictions in zip(self.data.runs, self.predictions[split], strict=True):
            if self.serving.experts == 1:
                summaries.append(summarise(predictions, run.tasks))
            else:
                summaries += [summarise([p for p in predictions if p.task == t.name], [t]) for t in run.tasks]
        return summaries

    def on_validation_epoch_start(self) -> None:
        self._answers: list[tuple[EvalBatch, Tensor, list[str]]] = []

    def on_test_epoch_start(self) -> None:
        self._answers = []

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._answers.append((batch, *self.passes.evaluate(batch)))

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._answers.append((batch, *self.passes.evaluate(batch)))

    def _collect(self, split: str) -> None:
        """Takes the answers from the device, not before all are on their way, and all devices' in the order of one."""
        tasks = [run.tasks for run in self.data.runs]
        answered = [
            list(zip(batch.runs, predict(batch, losses.tolist(), texts, tasks), strict=True))
            for batch, losses, texts in self._answers
        ]
        self._answers = []
        self.predictions[split] = [[] for _ in self.seeds]
        for run, answer in chain.from_iterable(interleaved(answered)):
            self.predictions[split][run].append(answer)

    def on_validation_epoch_end(self) -> None:
        self._collect("val")
        self._log_summaries("val")
        summaries, each = self.adapter_summaries("val"), self.serving.experts
        for run, recipe in enumerate(self.optims):
            finite = any(math.isfinite(s["loss"]) for s in summaries[run * each : (run + 1) * each])
            if not finite:
                why = (
                    f"val/loss is not finite after optimizer step {self.trainer.global_step}: training has diverged; "
                    f"lower optim.lr ({recipe.lr}) or set trainer.gradient_clip_val"
                )
                self.stop_run(run, LorachainsError(why))

    def stop_run(self, run: int, error: LorachainsError) -> None:
        """Stops one run; the others go on. Raises the error if there are no others."""
        if run not in self.failures:
            self.failures[run] = error
            if len(self.failures) == len(self.seeds):
                raise self.failures[0]
            log.error("run %d of %d is stopped: %s", run + 1, len(self.seeds), error)

    def on_test_epoch_end(self) -> None:
        self._collect("test")
        self._log_summaries("test")

    def _log_summaries(self, split: str) -> None:
        summaries = [
            {f"{split}/{key}": value for key, value in summarise(predictions, run.tasks).items()}
            for predictions, run in zip(self.predictions[split], self.data.runs, strict=True)
        ]
        for run, summary in enumerate(summaries):
            if split != "test" or run not in self.settled:
                self.journal.log(run, summary)
        if all(summary.keys() == summaries[0].keys() for summary in summaries):
            self.journal.show(summaries)

    # -- checkpoints: what is trained and the ledger, never the base; and what was logged ------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.journal.close_step()  # saved at a batch's end, before it was closed
        self.journal.write()
        checkpoint["history"] = self.journal.history
        checkpoint["failures"] = {run: str(error) for run, error in self.failures.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.journal.log_again(checkpoint["history"])
        self.failures = {run: LorachainsError(text) for run, text in checkpoint["failures"].items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The chain's own tensors."""
        return self.chain.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Takes over a chain's own tensors.

        Raises:
            LorachainsError: they are of another model or adapter config.
        """
        self.chain.load_state_dict(state_dict)


def _peak(recipe: Optim, experts: int) -> list[float]:
    peak = recipe.peak()
    if len(peak) not in (1, experts):
        raise LorachainsError(
            f"optim.lr gives {len(peak)} learning rates for {experts} adapters: give one, or one each"
        )
    return peak if len(peak) > 1 else peak * experts
