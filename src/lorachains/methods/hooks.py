"""What a method overrides of the frame that all have in common (`Method`), with what is done where it doesn't."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from jaxtyping import Float
from torch import Tensor, nn

from lorachains.batch import TokenBatch
from lorachains.data.runs import RunsDataModule
from lorachains.data.tokens import EvalBatch, Serving
from lorachains.run_folder import RunFolder

if TYPE_CHECKING:
    from lorachains.methods.passes import Passes


class Hooks(L.LightningModule):
    """A method, as far as methods differ."""

    serving: Serving
    passes: "Passes"

    trains = False
    """Whether there is anything to fit."""

    takes_unlabelled = False
    """Whether training rows without a task can be used, where each adapter has a task of its own."""

    def reads(self, data: RunsDataModule) -> RunsDataModule:
        """The runs' data as the method puts it to the model."""
        return data

    def route(self, batch: TokenBatch) -> None:
        """Sets the route for a forward pass over the batch."""

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        """The terms of each adapter's loss by name; their sum over terms and adapters is differentiated."""
        raise NotImplementedError

    def differentiate(self, loss: Tensor) -> tuple[Tensor, ...]:
        """The gradient of a scalar, in whatever form the method takes it over."""
        raise NotImplementedError

    @property
    def layout(self) -> int:
        """Changes whenever a tensor that a forward pass reads has moved or has changed its shape."""
        return 0

    @property
    def compiled(self) -> bool:
        """Whether decoder layers can be compiled; where they can't, passes are still replayed."""
        return True

    @property
    def why_plain(self) -> str | None:
        """What keeps the method's passes from being replayed; `None` if nothing does."""
        return None

    @property
    def compiled_beside(self) -> Sequence[nn.Module]:
        """What is compiled beside the decoder layers, each by itself."""
        return ()

    def scoring(self) -> AbstractContextManager[object]:
        """Around a pass that scores candidates, after `route`."""
        return nullcontext()

    @property
    def knots_tied(self) -> int:
        """So far."""
        return 0

    @property
    def trained(self) -> Sequence[nn.Parameter]:
        """What an optimizer steps: the same on all devices at any time."""
        return []

    @property
    def whole(self) -> Sequence[nn.Parameter]:
        """Parameters of the model that stay whole on each device where the base is divided."""
        return []

    def present(self, step: int) -> list[bool]:
        """Which adapters had rows in the last of so many optimizer steps."""
        return [True] * self.serving.bank

    def own_steps(self, adapters: Sequence[int], step: int) -> int:
        """How many of so many optimizer steps had rows for one of these adapters."""
        return step

    def snapshot(self, expert: int) -> dict[str, Any]:
        """A copy of what an adapter has learned, of tensors and plain types, from which `restore` brings it back."""
        return {}

    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        """Brings each adapter back to its own snapshot."""

    def criteria(self, summaries: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
        """By which summary each adapter's best epoch is chosen, of each adapter's own."""
        return summaries

    def answers(self, batch: EvalBatch) -> tuple[Tensor, list[str]]:
        """The loss of each of a batch's candidates in nats a token, and the free answers."""
        return self.passes.evaluate(batch)

    def figures(self) -> dict[str, float]:
        """What is told of each run's size in its metrics."""
        return {}

    def conclude(self) -> None:
        """Takes down what is told of the end of training, before the best epochs are brought back."""

    def save_last(self, run: int, folder: RunFolder) -> None:
        """Writes what is kept of the end of training, where a run's best epoch is an earlier one."""

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes what a run has learned, in one process of several; returns metrics of what it wrote."""
        return {}

    def report(self, run: int, folder: Path | None) -> dict[str, float]:
        """Metrics (`test/…`) of a run's last test beside those of `summarise`; its tables and pictures go to a folder.

        They are written in one process of several.
        """
        return {}

    def load(self, folder: Path) -> None:
        """Takes back what `save` has written of one run: each adapter, from the folder's folder of its name.

        Raises:
            LorachainsError: one is missing or damaged, or of another base.
        """

    def remedy(self, run: int) -> str:
        """What to do where a run's losses aren't finite."""
        return "the model as it is gives that; choose another model.name, or model.dtype=float32"
