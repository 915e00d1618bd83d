"""Counts the FLOPs of a training, those of evaluation left out."""

import logging
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from lorachains.bank import LoraBank
from lorachains.batch import TokenBatch
from lorachains.flops import Costs, costs, counted, estimated
from lorachains.tracing import short_batch, trace

if TYPE_CHECKING:
    from lorachains.methods.lora import Lora

log = logging.getLogger(__name__)


class FlopsCount(L.Callback):
    """Adds up what each adapter's texts cost (`flops.py`), over all processes of a resumed run. Nothing is asked of the
    device but one pass over a short text when training begins.

    Attributes:
        counted: FLOPs so far of each adapter; `None` if the model has weights whose products aren't known.
        estimated: FLOPs so far of each adapter, by the paper's estimator.
    """

    def __init__(self) -> None:
        self.counted: list[int] | None = []
        self.estimated: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: "Lora") -> None:  # type: ignore[override]
        model, batch = pl_module.model, short_batch(pl_module.serving.bank).to(pl_module.device)

        def loss() -> Tensor:
            pl_module.route(batch)
            return torch.stack(list(pl_module.losses(batch).values())).sum()

        with trainer.precision_plugin.forward_context():
            self._trace = trace(model, batch, loss)
        self._model = model
        self._bank = next((module for module in model.modules() if isinstance(module, LoraBank)), None)
        self._costs: dict[tuple[int, int], Costs] = {}
        if self._trace.uncounted:
            self.counted = None
            log.warning("train/flops is left out: the products of %s aren't known", self._trace.uncounted[0])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        ranks = (0, 0) if self._bank is None else (self._bank.lora_A.shape[1], self._bank.tied)
        if ranks not in self._costs:
            self._costs[ranks] = costs(self._model, self._trace)
        now = self._costs[ranks]
        self.estimated = _added(self.estimated, [estimated(now, load) for load in batch.loads])
        if self.counted is not None:
            self.counted = _added(self.counted, [counted(now, load) for load in batch.loads])

    def metrics(self, run: int, names: Sequence[str], seconds: float, bank: int) -> dict[str, float]:
        """A run's FLOPs, and those of each of its adapters if it has several; FLOPs a second are those of all runs.

        Args:
            names: of the run's adapters.
            seconds: spent in training.
            bank: adapters of all runs; what is counted behind them is of rows without a label, of a run alone.
        """
        metrics: dict[str, float] = {}
        for key, all_of in (("flops", self.counted), ("flops_6n", self.estimated)):
            if not all_of:  # none were counted, or no batch was seen
                continue
            own = all_of[run * len(names) : (run + 1) * len(names)]
            metrics[f"train/{key}"] = sum(own) + sum(all_of[bank:])
            if len(names) > 1:
                metrics |= {f"train/{name}/{key}": flops for name, flops in zip(names, own, strict=True)}
        if self.counted:
            metrics["train/flops_per_second"] = sum(self.counted) / max(seconds, 1e-9)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"counted": self.counted, "estimated": self.estimated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counted, self.estimated = state_dict["counted"], state_dict["estimated"]


def _added(before: list[int], more: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(before, more, fillvalue=0)]
