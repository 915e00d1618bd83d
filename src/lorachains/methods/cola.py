"""COLA: Chain of LoRA, residual learning (arXiv 2401.04151; Algorithm 1).

LoRA, but at scheduled optimizer steps, or where the loss stops improving, a callback ties a knot: the link joins the
ledger (or the weights), a fresh link extends the chain, and the optimizer forgets everything. Until the first knot a
COLA run is the LoRA run.

On purpose other than the paper: the default keeps tied links as frozen factors, since adding them to bfloat16 weights
loses most of what later links learn; `knots.mode=merge` is the paper's way.
"""

import logging
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.knots import DRIFT_TOLERANCE, Knots
from lorachains.methods.late import Late
from lorachains.methods.links import all_links, of_link, scalars
from lorachains.methods.lora import Lora
from lorachains.optim import Optim, forget
from lorachains.parallel import add_up, writes
from lorachains.plateau import LAG, Plateau, Watch
from lorachains.run_folder import RunFolder
from lorachains.scoring import answer_logits

log = logging.getLogger(__name__)


class Cola(Lora):
    """Trains a chain whose knots are tied on schedule.

    Args:
        knots: the schedule, and how a knot is tied.
        others: see `Lora`.

    Attributes:
        plan: the optimizer steps after which knots are tied, as far as they are known.

    Raises:
        LorachainsError: the links can't be merged into this base, or several runs are to tie knots by their losses.
    """

    def __init__(self, *args: Any, knots: Knots, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.knots = knots
        self.plan: list[int] = []
        self.chain.requantize = knots.requantize
        self._watch = Watch(knots) if isinstance(knots, Plateau) and knots.links > 1 else None
        self._losses = Late(LAG)
        if self._watch is not None and len(self.seeds) > 1:
            raise LorachainsError("knots=plateau ties each run's knots at moments of their own: train the runs apart")
        if knots.mode == "merge":
            self.chain.check_mergeable()
        self._extend()

    def configure_callbacks(self) -> list[L.Callback]:
        return [*super().configure_callbacks(), TieKnots()]

    def clock(self) -> Bool[Tensor, "steps adapters"]:
        """Where the rate is set anew at a knot, all optimizer steps: by them all adapters tie it together."""
        return super().clock() if self.knots.lr == "continue" else torch.ones_like(self.presence)

    def rate_factor(self, optim: Optim, step: int, total: int) -> float:
        if self.knots.lr == "continue":
            return super().rate_factor(optim, step, total)
        start = max((knot for knot in self.plan if knot <= step), default=0)
        end = min((knot for knot in self.plan if knot > step), default=total)
        warmup = self.knots.warmup if self.knots.lr == "rewarm" and start else None
        return optim.factor(step - start, end - start, warmup)

    def lay_plan(self) -> None:
        """Settles when knots are tied, and makes room for their links where passes are replayed.

        Links that were taken over join the weights here, where later ones will: after the base was identified by them.
        """
        self.plan = self.knots.plan(self.total_steps, self.steps_per_epoch)
        if self.knots.mode == "merge" and (self.plan or self._watch) and self.chain.ranks and not self.chain.merged:
            self.chain.merge()
        most = len(self.plan) + 1
        if self._watch is None:
            log.info("%d knots, after optimizer steps %s of %d", len(self.plan), self.plan, self.total_steps)
        else:
            self.plan, most = self.chain.knots_here, self._watch.knots.links
            log.info("up to %d knots, where the training loss stops improving", most - 1)
        if self.passes.replayed and self.knots.mode == "ledger":
            ranks = self.knots.ranks or [self.chain.config.r] * most
            self.chain.reserve(sum(ranks[:-1]))

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self._watch is not None:
            self._losses.note(add_up(loss.detach().clone()) / len(self.names))
        return loss

    def knot_due(self) -> bool:
        """Whether a knot is to be tied before the next batch."""
        step, tied = self.trainer.global_step, len(self.chain.knots_here)
        if self._watch is not None:
            self._losses.close(step)
            for loss in self._losses.arrived(step):
                self._watch.see(loss)
            if self._watch.due(step, self.total_steps):
                self.plan.append(step)
        return tied < len(self.plan) and step == self.plan[tied]

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
        self._extend()
        forget(self.trainer.optimizers[0], self.fresh_optimizer())
        after = self._probe_logits(probe)
        if self._watch is not None:
            self._watch.tied(self.trainer.global_step)
            self.plan_rates()
        self._report(len(self.chain.ranks), self._drifts(probe, before, after), lost)

    def _drifts(self, probe: TokenBatch, before: Tensor, after: Tensor) -> list[float]:
        """Each run's `‖after − before‖ / ‖before‖` over its own logits; 0 where nothing has changed."""
        run = probe.served.to(before.device) // len(self.names)

        def norms(logits: Tensor) -> Tensor:
            return logits.new_zeros(len(self.seeds)).index_add(0, run, logits.square().sum(1)).sqrt()

        moved = norms(after - before)
        return torch.where(moved == 0, moved, moved / norms(before)).tolist()

    def _extend(self) -> None:
        """Begins the next link, with a rank of its own if they have."""
        rank = self.knots.ranks[len(self.chain.knots_here)] if self.knots.ranks else self.chain.config.r
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
        for run, (drift, rows) in enumerate(zip(drifts, of_link(self, link - 1), strict=True)):
            knot = {"knot/link": link, "knot/drift": drift, "knot/merge_loss": lost}
            self.journal.log(run, knot | scalars(rows))
        log.info(
            "knot %d tied after optimizer step %d (%s): logits moved by %.1e; link %d begins with rank %d",
            link, step, self.knots.mode, max(drifts), link + 1, self.chain.rank,
        )  # fmt: skip
        dtype = self.model.dtype
        quantised = self.knots.requantize
        lossy = self.knots.mode == "merge" and (quantised or dtype in (torch.bfloat16, torch.float16))
        if lossy:
            kind = "quantised" if quantised else str(dtype).removeprefix("torch.")
            log.warning(
                "merging link %d into %s weights lost %.1f%% of its update, which the saved adapter has all the same: "
                "knots.mode=ledger keeps all of it%s",
                link, kind, 100 * lost, "" if quantised else ", model.dtype=float32 nearly all",
            )  # fmt: skip
        if lossy and self.knots.tolerance is None:
            return
        if getattr(self.model, "is_loaded_in_8bit", False):
            dtype = torch.bfloat16  # an int8 layer rounds what it reads, more coarsely than that
        tolerance = DRIFT_TOLERANCE[dtype] if self.knots.tolerance is None else self.knots.tolerance
        for run, drift in enumerate(drifts):
            if not drift <= tolerance:
                why = (
                    f"knot {link} after optimizer step {step} moved the logits by {drift:.1e}, more than rounding in"
                    f" {dtype} explains ({tolerance:.1e}): the base layers don't compute the same twice, or the "
                    "training has diverged; see knots.tolerance"
                )
                self.stop_run(run, LorachainsError(why))

    # -- what is kept --------------------------------------------------------------------------------------------------

    def conclude(self) -> None:
        self._links = all_links(self)

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes a run's adapters and `knots.jsonl`; `knot/…` of its metrics is of the last link as training ended."""
        links = self._links[run]
        if writes():
            folder.write_knots(links)
        return super().save(run, folder) | scalars(links[-len(self.names) :])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._watch is not None:
            self._losses.close(self.trainer.global_step)
            checkpoint["watch"], checkpoint["losses"] = self._watch.state(), self._losses.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self._watch is not None:
            self._watch.load(checkpoint["watch"])
            self._losses.load(checkpoint["losses"])


class TieKnots(L.Callback):
    """Ties each knot of the plan once, before the first batch that follows the knot's optimizer step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Cola) -> None:  # type: ignore[override]
        pl_module.lay_plan()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Cola, batch: TokenBatch, batch_idx: int) -> None:  # type: ignore[override]
        if pl_module.knot_due():
            pl_module.tie_knot(batch)
