"""The chain of a model: all its banks, the links tied so far, and the moves of COLA (§3.2): tie a knot, extend.

A chain of E adapters is E chains that share their knots. Plain LoRA is a chain that is never tied.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorachains.bank import LoraBank, draw_a
from lorachains.errors import LorachainsError
from lorachains.flat import FlatLinks
from lorachains.inject import inject, scaling
from lorachains.merging import Merges
from lorachains.packing import packs
from lorachains.routing import Route, Routing

Mode = Literal["ledger", "merge"]


class Chain:
    """E adapters over one frozen model.

    Args:
        model: its targeted layers are replaced by banks, in place.
        config: the adapters' PEFT config; several if they differ in `lora_alpha`, one for each adapter then.
        seeds: one for each adapter. Adapter e's k-th `A` depends on `seeds[e]`, k and the layers' sizes, so it is the
            same whatever the other adapters are.

    Attributes:
        banks: the banks by layer name.
        layout: changes whenever a tensor that a forward pass reads has moved or has changed its shape.
        ranks: the ranks of the tied links.
        knots: the number of optimizer steps done when each link was tied; -1 where that isn't known (of a link taken
            over).
        inherited: how many of the tied links were taken over from another run.
        requantize: whether links may be merged into quantised weights, which are quantised anew then.

    Raises:
        LorachainsError: the config asks for what a bank can't do, or targets nothing.
    """

    def __init__(self, model: PreTrainedModel, config: LoraConfig | Sequence[LoraConfig], seeds: Sequence[int] = (0,)):
        self.configs = [config] * len(seeds) if isinstance(config, LoraConfig) else list(config)
        self.model, self.config, self.seeds = model, self.configs[0], list(seeds)
        self.routing = Routing()
        packs(model)  # tried out while the model still computes without a route
        self.banks: dict[str, LoraBank] = inject(model, self.config, len(self.seeds), self.routing)
        self._flat = FlatLinks()
        self.layout = 0
        self._addresses: list[tuple[int, torch.Size]] = []
        self._reserved = 0
        self.ranks: list[int] = []
        self.knots: list[int] = []
        self.inherited = 0
        self.requantize = False
        self._merges = Merges(model, self.banks)
        self.extend()

    @property
    def experts(self) -> int:
        """The number of adapters."""
        return len(self.seeds)

    @property
    def device(self) -> torch.device:
        """Where the live links are."""
        return self._flat.storage.device

    @property
    def links(self) -> Float[Tensor, "experts parameters"]:
        """All live links in one tensor, however `flat` is divided."""
        return self._flat.storage

    @property
    def rank(self) -> int:
        """The live link's rank."""
        return next(iter(self.banks.values())).lora_A.shape[1]

    @property
    def merged(self) -> bool:
        """Whether tied links are in the base weights (and the ledger is their record)."""
        return next(iter(self.banks.values())).merged

    @property
    def route(self) -> Route:
        """Which adapter serves which row of the next forward passes."""
        return self.routing.route

    @route.setter
    def route(self, route: Route) -> None:
        self.routing.route = route

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the live link's stacked tensors, each with the adapters along its first dimension."""
        return [p for bank in self.banks.values() for p in (bank.lora_A, bank.lora_B, bank.lora_bias) if p is not None]

    @property
    def flat(self) -> list[nn.Parameter]:
        """All live links for the optimizer, `(experts, parameters)` with an adapter a row; the banks hold views.

        One tensor, or one for each slice of adapters (`split`).
        """
        return self._flat.slices

    def flatten(self) -> None:
        """Lays the live links side by side in `flat`.

        Called by everything here that changes a live link; to be called after the model has moved to another device.
        """
        self._flat.lay(self.parameters())
        self._notice_moves()

    def split(self, sizes: Sequence[int]) -> None:
        """Divides `flat` into tensors of so many adapters each, for optimizers with settings of their own."""
        self._flat.split(sizes)

    def add_gradient(self, whole: Float[Tensor, "experts parameters"], weight: float = 1.0) -> None:
        """Adds to the gradients of `flat`."""
        self._flat.add_gradient(whole, weight)

    def leave_out(self, present: Sequence[bool]) -> None:
        """Takes the gradients from the adapters that aren't present, each a slice of its own (`split`).

        A torch optimizer passes over what has no gradient: it stays as it is, its moments and step count too.
        """
        for parameter, there in zip(self.flat, present, strict=True):
            if not there:
                parameter.grad = None

    def differentiate(self, loss: Tensor) -> Float[Tensor, "experts parameters"]:
        """The gradient of a scalar with respect to all live links, laid out as `flat`."""
        return torch.cat([gradient.flatten(1) for gradient in torch.autograd.grad(loss, self.parameters())], 1)

    def reserve(self, rank: int) -> None:
        """Makes room in the ledgers for `rank` ranks of this run: knots then leave shapes and addresses as they are."""
        self._reserved = sum(self.ranks[: self.inherited]) + rank
        for bank in self.banks.values():
            bank.reserve(self._reserved)
        self._notice_moves()

    def extend(self, rank: int | None = None, alpha_over: int | None = None, first: bool = False) -> None:
        """Begins a fresh link: Gaussian (or uniform) `A`, zero `B` (§3.2 "Extend the chain").

        Args:
            rank: the new link's, the config's by default.
            alpha_over: the rank by which (or by whose root) alpha is divided, by default `rank`.
            first: whether `A` is drawn as the first link's was, `A_0` of Algorithm 1, rather than afresh (§3.2). With
                another rank it can't be the same.
        """
        rank = rank or self.config.r
        link = 0 if first else len(self.ranks)
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + link) for seed in self.seeds]
        scales = torch.tensor([scaling(config, alpha_over or rank) for config in self.configs], dtype=torch.float64)
        for bank in self.banks.values():
            draws = [draw_a(self.config.init_lora_weights, rank, bank.in_features, g) for g in generators]
            bank.extend(torch.stack(draws), scales)
        self.flatten()

    @property
    def knots_here(self) -> list[int]:
        """`knots` of the links that this run has tied."""
        return self.knots[self.inherited :]

    def merge(self) -> None:
        """Adds all links of the ledger to the weights.

        Raises:
            LorachainsError: they can't be merged into this base.
        """
        self.check_mergeable()
        self._merges.keep_original()
        for link in range(len(self.ranks)):
            self._merges.add(link, self.ranks)

    def tie(self, step: int, mode: Mode = "ledger") -> float:
        """Ties a knot (§3.2): the live link goes into the ledger and, in merge mode, into the base weights as well.

        The caller extends the chain right after, and forgets the optimizer's state.

        Args:
            step: the number of optimizer steps done.

        Returns:
            The share of the link's update that the base's precision lost, `‖lost‖ / ‖ΔW‖`: 0 in ledger mode.

        Raises:
            LorachainsError: merge mode over several adapters, a layer that can't be merged into, or another mode than
                that of the links before.
        """
        if self.ranks and self.merged != (mode == "merge"):
            raise LorachainsError(f"a chain is tied in one mode: it has links in another than knots.mode={mode}")
        if mode == "merge":
            self.check_mergeable()
            self._merges.keep_original()
        self.ranks.append(self.rank)
        self.knots.append(step)
        for bank in self.banks.values():
            bank.record()
        self._notice_moves()
        return self._merges.add(len(self.ranks) - 1, self.ranks) if mode == "merge" else 0.0

    def check_mergeable(self) -> None:
        """Raises a LorachainsError that says why links can't be merged into this base, if they can't."""
        self._merges.check(self.experts, self.requantize)

    def rewind(self, links: int) -> None:
        """Goes back to the state right after the `links`-th knot, with a fresh live link whose `B` is zero."""
        was_merged = self.merged
        self.ranks, self.knots = self.ranks[:links], self.knots[:links]
        for bank in self.banks.values():
            bank.truncate(links, sum(self.ranks), self._reserved)
        if was_merged:
            self._merges.restore_original()
            self.merge()
        self.extend()

    def state_dict(self) -> dict[str, Tensor]:
        """All that was trained, and the ledger; nothing of the base. Flat: `<layer>.<tensor>`."""
        tensors = {f"{n}.{k}": v for n, bank in self.banks.items() for k, v in bank.own_tensors().items()}
        record = {
            "ranks": torch.tensor(self.ranks),
            "knots": torch.tensor(self.knots),
            "inherited": torch.tensor(self.inherited),
            "merged": torch.tensor(self.merged),
        }
        return tensors | {f"chain.{k}": v for k, v in record.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a `state_dict()` of a chain over the same base; in merge mode replays its merges, in order.

        Raises:
            LorachainsError: the state is of a chain over other layers, or of other sizes.
        """
        expected = {f"{n}.{k}" for n, bank in self.banks.items() for k in bank.own_tensors()}
        if differing := expected ^ {key for key in state if not key.startswith("chain.")}:
            raise LorachainsError(
                f"the checkpoint is of other layers than this run's: {sorted(differing)[0]} is in one only"
            )
        self.ranks, self.knots = state["chain.ranks"].tolist(), state["chain.knots"].tolist()
        self.inherited = int(state["chain.inherited"])
        for name, bank in self.banks.items():
            for key in bank.own_tensors():
                bank.take(key, state[f"{name}.{key}"])
            bank.reserve(self._reserved)
        self.flatten()
        self._merges.restore_original()
        if bool(state["chain.merged"]):
            self.merge()

    def _notice_moves(self) -> None:
        tensors = [t for bank in self.banks.values() for t in (*bank.parameters(False), *bank.buffers(False))]
        addresses = [(t.data_ptr(), t.shape) for t in tensors]
        if addresses != self._addresses:
            self._addresses = addresses
            self.layout += 1
