"""Full fine-tuning, the paper's upper baseline (COLA, arXiv 2401.04151, §5.1 "Methods Compared"; App. A.1).

All weights are trained, in float32: at its learning rates (1e-6 … 8e-5) an update is far below the step between two
bfloat16 numbers, and would be lost. On a GPU they are master weights: with `trainer.precision=auto` training computes
in bfloat16 copies of them (automatic mixed precision), and keeps gradients, moments and updates in float32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorachains.errors import LorachainsError
from lorachains.methods.training import Trained
from lorachains.models import LanguageModel
from lorachains.optim import Optim
from lorachains.parallel import writes
from lorachains.run_folder import RunFolder


class Full(Trained):
    """Trains all weights of the base on answer tokens; one run alone.

    Args:
        base: its weights are changed, in place.
        seed: of dropout. The run's rows and their order are the data's.
        others: see `Trained` and `Method`.

    Raises:
        LorachainsError: the weights are quantised or in half precision, or there are several runs or learning rates.
    """

    def __init__(
        self, base: LanguageModel, optim: Optim | Sequence[Optim], seed: int | Sequence[int], select: str = "metric"
    ):
        super().__init__(base, optim, seed, select=select)
        if len(self.seeds) > 1:
            raise LorachainsError(f"all weights of one model are trained: {len(self.seeds)} runs can't share them")
        _check_trainable(base)
        self._weights = dict(base.model.named_parameters())  # those that are tied, once
        for weight in self._weights.values():
            weight.requires_grad_()
        self._gradients: tuple[Tensor, ...] | None = None

    @property
    def trained(self) -> list[nn.Parameter]:
        return list(self._weights.values())

    # -- training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if getattr(self.trainer.strategy, "sharded", False):
            raise LorachainsError("trainer.strategy=fsdp2 divides frozen weights, method=full has none: use ddp")
        super().setup(stage)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._peak = self._peak.to(self.device)
        return self.optims[0].optimizer(self.trained)

    def set_rates(self, step: int, rates: Float[Tensor, " experts"]) -> None:
        rate = self.optims[0].peak()[0] * float(self.factors[step])  # `rates` may be on a GPU, which would have to wait
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def differentiate(self, loss: Tensor) -> tuple[Tensor, ...]:
        """One tensor for each of `trained`; where passes are replayed, the same tensors each time."""
        with torch.autocast(self.device.type, enabled=False):  # which is for the forward pass alone
            found = torch.autograd.grad(loss, self.trained, materialize_grads=True)
        if not self.passes.replayed:
            return found
        if self._gradients is None:
            self._gradients = tuple(torch.empty_like(weight) for weight in self.trained)
        for kept, part in zip(self._gradients, found, strict=True):  # else each graph has room for one of its own
            kept.copy_(part)
        return self._gradients

    def add_gradient(self, gradient: tuple[Tensor, ...], weight: float) -> None:
        for parameter, part in zip(self.trained, gradient, strict=True):
            if parameter.grad is None:
                parameter.grad = part if weight == 1 else part * weight
            else:
                parameter.grad.add_(part, alpha=weight)

    def clip(self, max_norm: float) -> Float[Tensor, " experts"]:
        return nn.utils.clip_grad_norm_(self.trained, max_norm).view(1)

    # -- what is kept: all weights -------------------------------------------------------------------------------------

    def snapshot(self, expert: int) -> dict[str, Any]:
        """All weights, on the host."""
        return {name: weight.detach().to("cpu", copy=True) for name, weight in self._weights.items()}

    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        self.load_state_dict(dict(snapshots[0]))

    def figures(self) -> dict[str, float]:
        """The weights' number."""
        return {"model/trainable_parameters": sum(weight.numel() for weight in self.trained)}

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes the model and its tokenizer as transformers loads them."""
        if writes():
            self.model.save_pretrained(self.place(folder))
            self.base.tokenizer.save_pretrained(self.place(folder))
        return {}

    def place(self, folder: RunFolder) -> Path:
        """Where in a run's folder the model is written."""
        return folder.model

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """All weights."""
        return {name: weight.detach() for name, weight in self._weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Takes over all weights.

        Raises:
            LorachainsError: they are of another model.
        """
        shapes, given = ({n: tuple(w.shape) for n, w in of.items()} for of in (self._weights, state_dict))
        if shapes != given:
            name = min(n for n in shapes | given if shapes.get(n) != given.get(n))
            raise LorachainsError(f"the checkpoint is of another model than this run's: {name} differs")
        for name, weight in self._weights.items():
            weight.copy_(state_dict[name])


def _check_trainable(base: LanguageModel) -> None:
    remedy = "full fine-tuning needs model.dtype=float32 and model.quantization=null"
    for name, weight in base.model.named_parameters():
        kind = str(weight.dtype).removeprefix("torch.")
        if not weight.is_floating_point():
            raise LorachainsError(f"{base.name} is quantised ({name} in {kind}): {remedy}")
        if weight.dtype.itemsize < 4:
            raise LorachainsError(f"{base.name} is in {kind}, whose rounding loses small updates ({name}): {remedy}")
