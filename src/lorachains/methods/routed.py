"""What MoA and MoE-LoRA have in common: a chain of experts and routers over one model, trained together.

The routers are the run's, no adapter's; but row e of theirs is expert e's, and has a learning rate of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorachains.errors import LorachainsError, check_switch
from lorachains.experts import load_experts
from lorachains.methods.lora import Lora
from lorachains.mixture import Mixture
from lorachains.mixture_format import About, put_weight, read_routers
from lorachains.optim import check_rate


class Routed(Lora):
    """Trains experts and routers.

    Args:
        names: the experts'.
        experts: where trained experts are: a folder with a PEFT adapter by each name, or each one's by name; `None` to
            train all from the beginning.
        router_lr: the routers' peak learning rate, with the schedule of the experts'; `None` for the first expert's.
        pool: what routers read of a prompt, see `routers`.
        decision, top_k: which experts follow from that, see `decisions`.
        voters: the blocks whose routers vote, where not all do: the first ones have seen little of a text.
        share_router: whether a block's attention and feed-forward network share a router, as the paper advises: the
            voters are then fewer, and see what the block sees. Not shared, they aren't compiled.
        reads: who reads a prompt while routers decide, "base" or "experts", see `mixture`. Runs from before there was a
            choice have experts that read.
        others: see `Lora`.

    Raises:
        LorachainsError: fewer than two experts, several runs in one bank, or experts that don't fit.
    """

    def __init__(
        self, *, names: Sequence[str], experts: str | Mapping[str, str] | None = None,
        router_lr: float | None = None, pool: str = "mean_rms", decision: str = "vote", top_k: int | None = None,
        voters: Sequence[int] | None = None, share_router: bool = True, reads: str = "experts", **kwargs: Any,
    ):  # fmt: skip
        super().__init__(names=names, **kwargs)
        if len(self.names) < 2:
            raise LorachainsError(
                f"there is nothing to route with the experts {self.names}: give two or more, as data.tasks"
            )
        if len(self.seeds) > 1:
            raise LorachainsError(
                "routers belong to one run: train the runs one after the other (hydra/launcher=basic)"
            )
        if experts is not None:
            load_experts(self.chain, _folders(experts, self.names), self.base.name, self._fingerprint)
        check_switch("method.share_router", share_router)
        self.mixture = Mixture(self.chain, pool, decision, top_k, share_router, voters, reads)
        self.routers = self.mixture.routers  # a module of this one, so that it moves with it
        self.router_lr = self.optims[0].peak()[0] if router_lr is None else router_lr
        check_rate("method.router_lr", self.router_lr)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.trainer.world_size > 1:
            raise LorachainsError("routers are trained on one device: set trainer.devices=1")

    def on_fit_start(self) -> None:
        if not self.compiled and str(getattr(self.trainer, "compile", "false")).lower() == "true":
            raise LorachainsError(
                "trainer.compile is true, but routes within a block aren't compiled: use auto or false"
            )
        super().on_fit_start()

    # -- training ------------------------------------------------------------------------------------------------------

    @property
    def compiled(self) -> bool:
        """Not with routes within a block."""
        return self.mixture.shared

    @property
    def compiled_beside(self) -> Sequence[nn.Module]:
        """What routers read of a block's input: some twenty small kernels a block, else."""
        return (self.routers.pooling,)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The links, see `Chain.flat`, and the routers."""
        return [*self.chain.flat, self.routers.rows]

    @property
    def joint(self) -> bool:
        """All of them are one mixture, which fails as a whole."""
        return True

    @property
    def stepped(self) -> list[Tensor]:
        return [*super().stepped, self.routers.rows]

    @property
    def groups(self) -> int:
        return super().groups + 1

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        optimizer = super().fresh_optimizer()
        settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        optimizer.add_param_group({**settings, "params": [self.routers.rows]})
        return optimizer

    def plan_rates(self) -> None:
        """The routers' schedule goes by all optimizer steps."""
        super().plan_rates()
        factors = self.planned(torch.ones_like(self.presence[:, :1]))
        self._router_rates = (self.router_lr * factors).to(self._rates_at).expand(-1, self.chain.experts)

    def set_rates(self, step: int, rates: Float[Tensor, " experts"]) -> None:
        self._rates.rates = torch.cat([rates, self._router_rates[step]])

    def differentiate(self, loss: Tensor) -> tuple[Tensor, ...]:
        """Of the links, as `Chain.differentiate` lays it out, and of the routers; zero where the loss knows nothing."""
        parameters = [*self.chain.parameters(), self.routers.rows]
        *links, routers = torch.autograd.grad(loss, parameters, materialize_grads=True)
        # A product's gradient may lie transposed, which an optimizer's kernel for all tensors refuses.
        return torch.cat([gradient.flatten(1) for gradient in links], 1), routers.contiguous()

    def add_gradient(self, gradient: tuple[Tensor, ...], weight: float) -> None:
        super().add_gradient(gradient, weight)
        rows = self.routers.rows
        rows.grad = gradient[1] * weight if rows.grad is None else rows.grad.add_(gradient[1], alpha=weight)

    def clip(self, max_norm: float) -> Float[Tensor, " experts"]:
        """Each expert's gradient and, apart from them, the routers'; the norms are the experts'."""
        nn.utils.clip_grad_norm_([self.routers.rows], max_norm)
        return super().clip(max_norm)

    # -- what is kept --------------------------------------------------------------------------------------------------

    def about(self, experts: Sequence[str], pool: str) -> About:
        """What is written of the mixture beside its experts."""
        mixture, [data] = self.mixture, self.data.runs
        return About(
            list(experts), self.base.name, self._fingerprint, pool, mixture.mode, mixture.top_k, mixture.shared,
            mixture.voters, mixture.reads, data.template, data.max_length, data.stop,
        )  # fmt: skip

    def load(self, folder: Path) -> None:
        """The experts that the mixture has, in its order, and its routers."""
        about, weight = read_routers(folder)
        load_experts(self.chain, [folder / name for name in about.names], self.base.name, self._fingerprint)
        put_weight(self.mixture, weight, folder)

    def figures(self) -> dict[str, float]:
        routers, found = self.routers.rows.numel(), super().figures()
        whole = found["adapter/trainable_parameters"] + routers
        return found | {"router/trainable_parameters": routers, "train/trainable_parameters": whole}

    def snapshot(self, expert: int) -> dict[str, Any]:
        return super().snapshot(expert) | {"router": self.routers.rows[expert].detach().clone()}

    @torch.no_grad()
    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        super().restore([{k: v for k, v in snapshot.items() if k != "router"} for snapshot in snapshots])
        self.routers.rows.copy_(torch.stack([snapshot["router"] for snapshot in snapshots]))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The chain's own tensors, and the routers'."""
        return super().state_dict() | {"routers": self.routers.rows.detach()}

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Takes over what `state_dict` gave.

        Raises:
            LorachainsError: it is of another model, adapter config or number of experts.
        """
        links = {key: value for key, value in state_dict.items() if key != "routers"}
        super().load_state_dict(links)
        rows = state_dict.get("routers")
        if rows is None or rows.shape != self.routers.rows.shape:
            raise LorachainsError("the checkpoint has no routers of this run's sizes: it is of another run")
        self.routers.rows.data.copy_(rows)


def check_not_recomputed(model: PreTrainedModel, what: str) -> None:
    """Raises a LorachainsError if activations are recomputed in the backward pass."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise LorachainsError(f"{what} routes within the pass that model.checkpointing repeats: set that to false")


def _folders(experts: str | Mapping[str, str], names: Sequence[str]) -> list[Path]:
    if isinstance(experts, str):
        found = Path(experts)
        found = found / "adapters" if (found / "adapters").is_dir() else found
        return [found / name for name in names]
    if not isinstance(experts, Mapping):
        raise LorachainsError(f"method.experts is {experts!r}: give a run's folder, or {{task: DIR, …}}")
    if set(experts) != set(names):
        raise LorachainsError(
            f"method.experts names {', '.join(sorted(experts))}: give a folder for each of {', '.join(names)}, no other"
        )
    if empty := [name for name in names if not isinstance(experts[name], str)]:
        raise LorachainsError(f"method.experts has {experts[empty[0]]!r} for {empty[0]}: give a folder")
    return [Path(experts[name]) for name in names]
