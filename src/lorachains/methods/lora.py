"""Plain LoRA (Hu et al. 2021): a chain of E adapters trained at once.

The adapters share no trainable parameter, so the sum of their losses trains each as if it were alone. That holds for
the experts of one run and for several runs side by side, which differ in seed, learning rate or alpha. One without rows
in an optimizer step is left as it is, and its schedule goes by the steps that it makes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn

from lorachains.batch import TokenBatch
from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.experts import load_experts
from lorachains.inject import check_names
from lorachains.live_link import LiveLink, live_link, restore
from lorachains.loading import go_on_from
from lorachains.methods.training import Trained
from lorachains.models import LanguageModel, base_fingerprint
from lorachains.optim import AdapterRates, Optim, alike, build, clip_per_adapter
from lorachains.packing import hard_route
from lorachains.parallel import writes
from lorachains.peft_format import CONFIG
from lorachains.run_folder import RunFolder
from lorachains.transfer import save_adapter


class Lora(Trained):
    """Trains the adapters of a chain on answer tokens.

    Args:
        base: the frozen model and its tokenizer. Its targeted layers are replaced, in place.
        adapter: the adapters' PEFT config; one for each run if they differ in `lora_alpha`.
        seed: of each run: its adapter e is initialised from `seed + e`.
        start_from: the folder of a run or of an adapter whose chain this one goes on from; its links stay as they are.
        start_links: how many of its links; all if `None`.
        others: see `Trained` and `Method`.

    Raises:
        LorachainsError: a config that a bank can't follow, or a chain to go on from that doesn't fit.
    """

    activated = "none"
    """Which adapters serve only what is behind a request, see `lorachains.data.activation`."""

    def __init__(
        self, base: LanguageModel, adapter: LoraConfig | Sequence[LoraConfig], optim: Optim | Sequence[Optim],
        seed: int | Sequence[int], names: Sequence[str] = ("adapter",), select: str = "metric",
        start_from: str | None = None, start_links: int | None = None,
    ):  # fmt: skip
        super().__init__(base, optim, seed, names, select)
        adapters = [adapter] * len(self.seeds) if isinstance(adapter, LoraConfig) else list(adapter)
        configs = [config for config in adapters for _ in self.names]
        check_names(base.model, configs[0])
        self.chain = Chain(base.model, configs, [s + expert for s in self.seeds for expert in range(len(self.names))])
        self._fingerprint = base_fingerprint(base)  # before training: a merge changes the weights
        if start_from is not None:
            go_on_from(self.chain, base, Path(start_from), start_links)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for run in self.data.runs:
            if len(self.names) > 1 and (tasks := [task.name for task in run.tasks]) != self.names:
                raise LorachainsError(
                    f"there is an adapter for each of {self.names}, but the data's tasks are {tasks}: "
                    "choose these as data.tasks, or set method.names=null for the data's"
                )

    def route(self, batch: TokenBatch) -> None:
        self.chain.route = hard_route(self.model, batch, joint=self.joint)

    @property
    def joint(self) -> bool:
        """Whether the adapters fail together, see `HardRoute`: here each is as if it were alone."""
        return False

    @property
    def layout(self) -> int:
        return self.chain.layout

    @property
    def knots_tied(self) -> int:
        return len(self.chain.knots_here)

    # -- training ------------------------------------------------------------------------------------------------------

    @property
    def trained(self) -> list[nn.Parameter]:
        """See `Chain.flat`."""
        return self.chain.flat

    @property
    def stepped(self) -> list[Tensor]:
        """The same in as few tensors as there can be."""
        return [self.chain.links]

    @property
    def whole(self) -> list[nn.Parameter]:
        return self.chain.parameters()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.chain.flatten()
        self.chain.split(alike(self._recipes) if self.data.even() else [1] * self.chain.experts)
        optimizer = self.fresh_optimizer()
        self._peak = self._peak.to(self.device, self.chain.flat[0].dtype)
        self._rates = AdapterRates(optimizer, self._peak, lambda: self.stepped)
        return optimizer

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer over the chain's live links that has made no step yet."""
        return build(self._recipes, self.chain.flat)

    @property
    def groups(self) -> int:
        """The optimizer's groups of parameters: those with settings of their own."""
        return len(alike(self._recipes))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if len(checkpoint["optimizer_states"][0]["param_groups"]) != self.groups:
            raise LorachainsError(
                "the checkpoint is of a version of lorachains that kept an optimizer state for each adapter apart: "
                "finish the run with the version in its code.jsonl, or begin anew (overwrite=true, resume=false)"
            )

    @property
    def _recipes(self) -> list[Optim]:
        """Of each adapter."""
        return [recipe for recipe in self.optims for _ in range(self.chain.experts // len(self.optims))]

    def set_rates(self, step: int, rates: Float[Tensor, " experts"]) -> None:
        self._rates.rates = rates

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.journal.note("link", lambda: torch.full_like(self._peak, len(self.chain.ranks) + 1))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        present = self.presence[self.trainer.global_step]
        if not present.all():
            self.chain.leave_out(present.tolist())

    def differentiate(self, loss: Tensor) -> tuple[Tensor, ...]:
        """One tensor, as `Chain.differentiate` lays it out."""
        return (self.chain.differentiate(loss),)

    def add_gradient(self, gradient: tuple[Tensor, ...], weight: float) -> None:
        self.chain.add_gradient(gradient[0], weight)

    def clip(self, max_norm: float) -> Float[Tensor, " experts"]:
        return clip_per_adapter(self.chain.flat, max_norm)

    # -- what is kept: what is trained and the ledger, never the base --------------------------------------------------

    def snapshot(self, expert: int) -> dict[str, Any]:
        return vars(live_link(self.chain, expert))

    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        restore(self.chain, [LiveLink(**snapshot) for snapshot in snapshots])

    def figures(self) -> dict[str, float]:
        """The chain's links, and the trainable parameters of one adapter and of a run's."""
        each = sum(parameter[0].numel() for parameter in self.chain.parameters())
        of_run = each * (self.chain.experts // len(self.seeds))
        links = len(self.chain.ranks) + 1
        return {"train/links": links, "adapter/parameters": each, "adapter/trainable_parameters": of_run}

    def save_last(self, run: int, folder: RunFolder) -> None:
        """Writes the adapters of a chain with knots, of which an earlier best epoch may not have all."""
        if self.chain.ranks:
            self._save_adapters(run, RunFolder(folder.last))

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes a run's adapters in PEFT's format."""
        return self._save_adapters(run, folder)

    def _save_adapters(self, run: int, folder: RunFolder) -> dict[str, float]:
        metrics = dict[str, float]()
        for i, name in enumerate(self.names if writes() else ()):
            path = folder.adapter if len(self.names) == 1 else folder.adapters / name
            metrics["adapter/rank"] = self.write(run * len(self.names) + i, path)
        return metrics

    def load(self, folder: Path) -> None:
        there = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
        if missing := [name for name in self.names if name not in there]:
            raise LorachainsError(
                f"{folder} has no adapter for {missing[0]!r}: set data.tasks to some of {', '.join(there) or '(none)'}"
            )
        folders, activated = [folder / name for name in self.names], self.activated != "none"
        load_experts(self.chain, folders, self.base.name, self._fingerprint, activated)

    def write(self, expert: int, path: Path) -> int:
        """Writes one adapter in PEFT's format; returns its rank."""
        return save_adapter(self.chain, path, self.base.name, self._fingerprint, expert, self.invocation(expert))

    def invocation(self, expert: int) -> list[int] | None:
        """The tokens from which on an adapter serves a text; `None` if it serves all of it."""
        return None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The chain's own tensors."""
        return self.chain.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Takes over a chain's own tensors.

        Raises:
            LorachainsError: they are of another model or adapter config.
        """
        self.chain.load_state_dict(state_dict)
