"""What methods that train have in common: the loss on answer tokens, schedules by optimizer steps, Lightning's hooks.

A pass (`Passes`) computes losses and gradients together, so that both can be replayed as one graph; Lightning's
`backward` only takes the gradients over.
"""

import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.methods.method import Method
from lorachains.models import LanguageModel
from lorachains.optim import Optim
from lorachains.parallel import add_up
from lorachains.scoring import answer_losses, mean_per_group

log = logging.getLogger(__name__)

DROPOUT_SEED = 1 << 52
"""Keeps the seeds of dropout apart from those of the adapters' `A`."""


class Trained(Method):
    """Trains on answer tokens.

    Args:
        optim: the optimizer recipe; one for each run if they differ.
        seed: of each run; dropout is seeded by the first run's and the number of the batch.
        others: see `Method`.

    Attributes:
        presence: `(steps, adapters)`, which adapters have rows in which optimizer step; on the host.

    Raises:
        LorachainsError: a run has neither one learning rate nor one for each of its adapters.
    """

    def __init__(
        self, base: LanguageModel, optim: Optim | Sequence[Optim], seed: int | Sequence[int],
        names: Sequence[str] = ("adapter",), select: str = "metric",
    ):  # fmt: skip
        super().__init__(base, seed, names, select)
        self.optims = [optim] * len(self.seeds) if isinstance(optim, Optim) else list(optim)
        rates = [rate for recipe in self.optims for rate in _peak(recipe, len(self.names))]
        self._peak = torch.tensor(rates, dtype=torch.float64)
        self.presence = torch.zeros(0, self.serving.bank, dtype=torch.bool)  # where there is nothing to train

    # -- what a method overrides ---------------------------------------------------------------------------------------

    trains = True

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        return {"lm": self.means(batch)}

    def means(self, batch: TokenBatch) -> Float[Tensor, " groups"]:
        """The mean loss of an answer token of each adapter's texts, and last of those of none, where there are any."""
        return mean_per_group(answer_losses(self.model, batch), batch.served, len(batch.loads), batch.targets)

    def rate_factor(self, optim: Optim, step: int, total: int) -> float:
        """The share of the peak learning rate at which the step after `step` steps of a `clock` is made, of `total`."""
        return optim.factor(step, total)

    def clock(self) -> Bool[Tensor, "steps adapters"]:
        """The optimizer steps by which each adapter's schedule goes on: its own."""
        return self.presence

    def stages(self) -> list[int]:
        """The optimizer steps after which all schedules begin anew."""
        return []

    def add_gradient(self, gradient: tuple[Tensor, ...], weight: float) -> None:
        """Adds what `differentiate` gave to the gradients of what is trained."""
        raise NotImplementedError

    def clip(self, max_norm: float) -> Float[Tensor, " experts"]:
        """Scales each adapter's gradient to a norm of at most `max_norm`; returns the norms before."""
        raise NotImplementedError

    def set_rates(self, step: int, rates: Float[Tensor, " experts"]) -> None:
        """Sets the learning rates of the optimizer step after `step` steps."""
        raise NotImplementedError

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

    def present(self, step: int) -> list[bool]:
        there: list[bool] = self.presence[step - 1].tolist()
        return there

    def own_steps(self, adapters: Sequence[int], step: int) -> int:
        return int(self.presence[:step, list(adapters)].any(1).sum())

    # -- training ------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
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
        steps, warmup = self.total_steps, max(recipe.warmup for recipe in self.optims)
        self.presence = self.data.presence(steps, int(self.trainer.num_training_batches))
        if warmup >= steps > 0:
            log.warning(
                "optim.warmup is %d, but the run has %d optimizer steps: it never reaches optim.lr", warmup, steps
            )
        self.plan_rates()
        self.passes.rehearse()

    def plan_rates(self) -> None:
        """Lays out the learning rates of all optimizer steps, so that none of them is computed on the way."""
        self.factors = self.planned(self.clock())
        self._rates_at = self._peak * self.factors.to(self.device, self._peak.dtype)

    def planned(self, clock: Bool[Tensor, "steps adapters"]) -> Float[Tensor, "steps adapters"]:
        """The shares of the peak learning rates at which optimizer steps are made, by the steps that a clock counts."""
        factors = torch.zeros(clock.shape, dtype=torch.float64)
        for start, end in pairwise([0, *self.stages(), len(clock)]):
            stage = clock[start:end]
            done, totals = stage.cumsum(0) - stage.long(), stage.sum(0).tolist()
            curves: dict[tuple[int, int], Tensor] = {}
            for expert, total in enumerate(totals):
                run = expert // len(self.names)
                if (run, total) not in curves:
                    found = [self.rate_factor(self.optims[run], step, total) for step in range(total + 1)]
                    curves[run, total] = torch.tensor(found, dtype=torch.float64)
                factors[start:end, expert] = curves[run, total][done[:, expert]]
        return factors

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        step = self.trainer.global_step
        if self._dropout:
            # The random numbers of a batch depend on the seed and its number alone: a resumed run draws the same ones
            # (but for those of other places, where a replayed batch is filled up to another size).
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            torch.manual_seed((self.global_rank << 54) + DROPOUT_SEED + self.seeds[0] * 1_000_003 + number)
        self.set_rates(step, self._rates_at[step])
        self.journal.note("train/lr", lambda: self._rates_at[step])

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        self._gradient: tuple[Tensor, ...]
        terms, self._gradient = self.passes.train(batch)
        total = torch.stack(list(terms.values())).sum(0)
        self.journal.note("train/loss", lambda: add_up(total))
        if len(terms) > 1:
            for name, term in terms.items():
                self.journal.note(f"train/{name}", lambda term=term: add_up(term))  # type: ignore[misc]
        return total.sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Takes the gradient that `training_step` has computed along with the losses."""
        self.add_gradient(self._gradient, 1 / self.trainer.accumulate_grad_batches)
        self._gradient = ()  # as large as what is trained

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.trained:
            if parameter.grad is not None:
                add_up(parameter.grad)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            norms = self.clip(gradient_clip_val)
            self.journal.note("train/gradient_norm", lambda: norms)

    def on_train_batch_end(self, outputs: Any, batch: TokenBatch, batch_idx: int) -> None:
        self.journal.close_step()

    def on_train_epoch_end(self) -> None:
        self.journal.write()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["presence"] = self.presence  # where training is over, it is not laid out again

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.presence = checkpoint["presence"]

    def remedy(self, run: int) -> str:
        rate = self.optims[run].lr
        return f"training has diverged; lower optim.lr ({rate}) or set trainer.gradient_clip_val"


def _peak(recipe: Optim, experts: int) -> list[float]:
    peak = recipe.peak()
    if len(peak) not in (1, experts):
        raise LorachainsError(
            f"optim.lr gives {len(peak)} learning rates for {experts} adapters: give one, or one each"
        )
    return peak if len(peak) > 1 else peak * experts
