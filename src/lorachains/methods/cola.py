"""COLA: Chain of LoRA, residual learning (arXiv 2401.04151; Algorithm 1).

LoRA, but at scheduled optimizer steps a callback ties a knot: the link joins the ledger (or the weights), a fresh link
extends the chain, and the optimizer forgets everything. Until the first knot a COLA run is the LoRA run.

On purpose other than the paper: the default keeps tied links as frozen factors, since adding them to bfloat16 weights
loses most of what later links learn; `knots.mode=merge` is the paper's way.
"""

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.knots import DRIFT_TOLERANCE, Knots
from lorachains.methods.lora import Lora
from lorachains.optim import Optim, forget
from lorachains.scoring import answer_logits

log = logging.getLogger(__name__)


class Cola(Lora):
    """Trains a chain whose knots are tied on schedule.

    Args:
        knots: the schedule, and how a knot is tied.
        others: see `Lora`.

    Raises:
        LorachainsError: the links can't be merged into this base.
    """

    def __init__(self, *args: Any, knots: Knots, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.knots = knots
        self.plan: list[int] = []
        if knots.mode == "merge":
            self.chain.check_mergeable()
        if knots.ranks:
            self._extend(knots.ranks[0])

    def configure_callbacks(self) -> list[L.Callback]:
        return [*super().configure_callbacks(), TieKnots()]

    def rate_factor(self, optim: Optim, step: int) -> float:
        if self.knots.lr == "continue":
            return super().rate_factor(optim, step)
        start = max((knot for knot in self.plan if knot <= step), default=0)
        end = min((knot for knot in self.plan if knot > step), default=self.total_steps)
        warmup = self.knots.warmup if self.knots.lr == "rewarm" and start else None
        return optim.factor(step - start, end - start, warmup)

    def lay_plan(self) -> None:
        """Settles when knots are tied, and makes room for their links where passes are replayed."""
        self.plan = self.knots.plan(self.total_steps, self.steps_per_epoch)
        if self.passes.replayed and self.knots.mode == "ledger":
            ranks = self.knots.ranks or [self.chain.config.r] * (len(self.plan) + 1)
            self.chain.reserve(sum(ranks[:-1]))

    def tie_knot(self, probe: TokenBatch) -> None:
        """Ties the live link, extends the chain and forgets the optimizer's state.

        Args:
            probe: a batch on which the logits are compared before and after.

        Raises:
            LorachainsError: the knot changed the model's function by more than rounding can, in all runs; a run in
                which alone it did is stopped.
        """
        before = self._probe_logits(probe)
        lost = self.chain.tie(self.trainer.global_step, self.knots.mode)
        link = len(self.chain.ranks)
        self._extend(self.knots.ranks[link] if self.knots.ranks else self.chain.config.r)
        forget(self.trainer.optimizers[0], self.fresh_optimizer())
        after = self._probe_logits(probe)
        self._report(link, self._drifts(probe, before, after), lost)

    def _drifts(self, probe: TokenBatch, before: Tensor, after: Tensor) -> list[float]:
        """Each run's `‖after − before‖ / ‖before‖` over its own logits; 0 where nothing has changed."""
        run = probe.served.to(before.device) // len(self.names)

        def norms(logits: Tensor) -> Tensor:
            return logits.new_zeros(len(self.seeds)).index_add(0, run, logits.square().sum(1)).sqrt()

        moved = norms(after - before)
        return torch.where(moved == 0, moved, moved / norms(before)).tolist()

    def _extend(self, rank: int) -> None:
        kept = self.chain.config.r if self.knots.scaling == "ratio" else rank
        self.chain.extend(rank, kept, first=self.knots.init == "first")

    @torch.no_grad()
    def _probe_logits(self, probe: TokenBatch) -> Tensor:
        training = self.model.training
        self.model.eval()
        probe = probe.to(self.device)
        self.route(probe)
        with torch.compiler.set_stance("force_eager"):
            logits = answer_logits(self.model, probe)
        self.model.train(training)
        return logits.double()

    def _report(self, link: int, drifts: list[float], lost: float) -> None:
        step = self.trainer.global_step
        for run, drift in enumerate(drifts):
            self.journal.log(run, {"knot/link": link, "knot/drift": drift, "knot/merge_loss": lost})
        log.info(
            "knot %d tied after optimizer step %d (%s): logits moved by %.1e; link %d begins with rank %d",
            link, step, self.knots.mode, max(drifts), link + 1, self.chain.rank,
        )  # fmt: skip
        dtype = self.model.dtype
        lossy = self.knots.mode == "merge" and dtype in (torch.bfloat16, torch.float16)
        if lossy:
            log.warning(
                "merging link %d into %s weights lost %.1f%% of its update: knots.mode=ledger keeps all of it, "
                "model.dtype=float32 nearly all",
                link, str(dtype).removeprefix("torch."), 100 * lost,
            )  # fmt: skip
        if lossy and self.knots.tolerance is None:
            return
        tolerance = DRIFT_TOLERANCE[dtype] if self.knots.tolerance is None else self.knots.tolerance
        for run, drift in enumerate(drifts):
            if not drift <= tolerance:
                why = (
                    f"knot {link} after optimizer step {step} moved the logits by {drift:.1e}, more than rounding in"
                    f" {dtype} explains ({tolerance:.1e}): the base layers don't compute the same twice, or the "
                    "training has diverged; see knots.tolerance"
                )
                self.stop_run(run, LorachainsError(why))


class TieKnots(L.Callback):
    """Ties each knot of the plan once, before the first batch that follows the knot's optimizer step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Cola) -> None:  # type: ignore[override]
        pl_module.lay_plan()
        log.info("%d knots, after optimizer steps %s of %d", len(pl_module.plan), pl_module.plan, pl_module.total_steps)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Cola, batch: TokenBatch, batch_idx: int) -> None:  # type: ignore[override]
        chain = pl_module.chain
        if len(chain.knots) < len(pl_module.plan) and trainer.global_step == pl_module.plan[len(chain.knots)]:
            pl_module.tie_knot(batch)
