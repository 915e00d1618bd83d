"""Training in two stages: LoRAs are trained on, from their best epoch, as if they were trained anew.

MoA (arXiv 2403.03432) has a second stage, for which its experts are trained on; whatever is compared with them has to
be trained for as long and in the same way, or two stages win by being two. By itself this is such a control: of one
LoRA on all domains' rows, *Mixed continued*, or of one LoRA for each domain, *Single continued*.

Between the stages each adapter goes back to its best epoch, the optimizer forgets all steps, and the learning rate's
schedule begins anew. The best epoch of the run is one of stage 2.
"""

import logging
from typing import Any

import lightning as L

from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.methods.lora import Lora
from lorachains.optim import forget

log = logging.getLogger(__name__)


class LoraContinued(Lora):
    """Trains adapters in two stages.

    Args:
        stage1_epochs: so many of the first epochs are stage 1; `None` for half of all, of an odd number one less than
            stage 2 has. An epoch cut short by `trainer.max_steps` counts as one.
        others: see `Lora`.

    Attributes:
        continuing: whether stage 2 has begun.

    Raises:
        LorachainsError: a number that makes no sense.
    """

    def __init__(self, *, stage1_epochs: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if stage1_epochs is not None and (type(stage1_epochs) is not int or stage1_epochs < 0):
            raise LorachainsError(
                f"method.stage1_epochs is {stage1_epochs!r}: give a number of epochs, 0 or more, or null"
            )
        self.stage1_epochs, self.continuing = stage1_epochs, False

    def configure_callbacks(self) -> list[L.Callback]:
        return [*super().configure_callbacks(), BeginStage2()]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.max_epochs == 0:  # then there is no first batch, by which `boundary` is asked for
            raise LorachainsError("trainer.max_epochs is 0: raise it, there are two stages")

    @property
    def boundary(self) -> int:
        """The optimizer steps of stage 1.

        Raises:
            LorachainsError: none is left for stage 2.
        """
        each, total = self.steps_per_epoch, self.total_steps
        if total == 0:
            raise LorachainsError(
                "there is no optimizer step for stage 2: raise trainer.max_epochs or trainer.max_steps"
            )
        steps = (-(-total // each) // 2 if self.stage1_epochs is None else self.stage1_epochs) * each
        if steps >= total:
            raise LorachainsError(
                f"method.stage1_epochs={self.stage1_epochs} leaves none of {total} optimizer steps for stage 2: "
                "raise trainer.max_epochs, which counts the epochs of both"
            )
        return steps

    def stages(self) -> list[int]:
        return [self.boundary]

    def begin_stage_2(self) -> None:
        """Begins with each adapter's best epoch of stage 1, and an optimizer that has made no step."""
        self.continuing = True
        if self.best.best:
            self.best.restore(self)
            self.best.best = []
        forget(self.trainer.optimizers[0], self.fresh_optimizer())
        if self.stage1_epochs is None and not self.boundary:
            log.warning("of one epoch stage 1 has none: raise trainer.max_epochs, or say so by method.stage1_epochs=0")
        log.info("stage 2 begins after optimizer step %d of %d", self.trainer.global_step, self.total_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["continuing"] = self.continuing

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.continuing = checkpoint["continuing"]


class BeginStage2(L.Callback):
    """Begins stage 2 once, before the first batch that follows stage 1."""

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: LoraContinued, batch: TokenBatch, batch_idx: int
    ) -> None:
        if not pl_module.continuing and trainer.global_step >= pl_module.boundary:
            pl_module.begin_stage_2()
