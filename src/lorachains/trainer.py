"""Lightning's Trainer, with an end after so many optimizer steps that a resumed run reaches too, on several devices."""

import warnings
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lorachains.errors import LorachainsError, check_switch
from lorachains.graphs import decoder_layers
from lorachains.parallel import check_same, devices, on_gpu, started_here
from lorachains.sharding import shard

if TYPE_CHECKING:
    from lorachains.methods.method import Method

warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.13; nothing a user can mend
warnings.filterwarnings("ignore", ".*You have overridden `transfer_batch_to_device`.*")  # on purpose: see Passes.place
warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # what is logged is the same on all devices


class StopAfter(L.Callback):
    """Ends the training once `steps` optimizer steps are done."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class Devices(DDPStrategy):
    """A process for each device, with a model that isn't wrapped: the method itself adds the gradients up.

    DDP's wrapper waits for gradients of a `loss.backward()` that there is not, and copies the frozen weights around.

    Args:
        sharded: whether the base is divided over the devices (FSDP2); what is trained is whole on each.

    Raises:
        LorachainsError: a sharded base can't do what the run needs.
    """

    def __init__(self, sharded: bool = False):
        super().__init__()
        self.sharded = sharded

    def setup(self, trainer: L.Trainer) -> None:
        """Moves the model to its device, or divides it."""
        if self.sharded:
            method: Any = self.lightning_module
            if any(row.prompt for run in method.data.runs for split in ("val", "test") for row in run.rows(split)):
                raise LorachainsError(
                    "trainer.strategy=fsdp2 can't generate free answers, whose lengths differ between devices: use ddp"
                )
            shard(method.model, decoder_layers(method.model), method.whole, self.root_device)
        super(DDPStrategy, self).setup(trainer)

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        return model

    def teardown(self) -> None:
        """Leaves a divided model where it is; Lightning moves a whole one to the host."""
        if not self.sharded:
            super().teardown()
            return
        for part in (self.cluster_environment, self.precision_plugin, self.accelerator):
            assert part is not None
            part.teardown()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A sharded base takes a checkpoint's merges shard by shard."""
        return self.sharded


class SameOnAllDevices(L.Callback):
    """Checks after each knot and before each validation that all devices hold the same of what is trained, bit for bit.

    Raises:
        LorachainsError: they don't.
    """

    def __init__(self) -> None:
        self.knots = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: "Method", *_: Any) -> None:  # type: ignore[override]
        if pl_module.knots_tied > self.knots:
            self.knots = pl_module.knots_tied
            self._check(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: "Method") -> None:  # type: ignore[override]
        self._check(trainer, pl_module)

    def _check(self, trainer: L.Trainer, pl_module: "Method") -> None:
        check_same(pl_module.trained, f"after optimizer step {trainer.global_step}")


class Trainer(L.Trainer):
    """Lightning's Trainer, but for `max_steps`, and with an own strategy for several devices.

    With Lightning's own `max_steps` (2.6), a run resumed at an epoch's end counts that epoch twice and, with
    `max_epochs` as well, ends too early.

    Args:
        max_steps: optimizer steps after which training ends, if `max_epochs` doesn't end it before; -1 for no limit.
        compile: whether passes over the model are compiled and replayed as CUDA graphs: "auto" (where that can be
            done), true or false.
        strategy: how several devices share a run: "ddp" (also "auto"), each has the whole model; "fsdp2", each has a
            part of every frozen weight.
        precision: as Lightning's, or "auto": mixed with bfloat16 on a GPU, that of the weights elsewhere.
        kwargs: see `lightning.Trainer`.

    Raises:
        LorachainsError: a value that Lightning would take and that makes no sense, or that can't be done.
    """

    def __init__(
        self, *, max_steps: int = -1, compile: bool | str = "auto", strategy: str = "auto",
        precision: Any = None, callbacks: list[L.Callback], **kwargs: Any,
    ):  # fmt: skip
        _check(kwargs | {"max_steps": max_steps, "precision": precision})
        _check_strategy(strategy, kwargs)
        if _several(kwargs):
            callbacks = [*callbacks, SameOnAllDevices()]
            kwargs |= {"strategy": Devices(strategy == "fsdp2"), "use_distributed_sampler": False}
            if started_here():
                kwargs["plugins"] = LightningEnvironment()  # within a job of SLURM there may be srun's variables
        self._max_optimizer_steps = max_steps
        self.compile = str(compile).lower()
        limit = [StopAfter(max_steps)] if max_steps >= 0 else []
        if not kwargs.get("enable_progress_bar", True):  # Lightning refuses a bar then, rather than leaving it out
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        if precision == "auto":
            precision = "bf16-mixed" if on_gpu(kwargs) else None
        if on_gpu(kwargs):
            torch.set_num_threads(min(HOST_THREADS, torch.get_num_threads()))
        super().__init__(callbacks=[*callbacks, *limit], inference_mode=False, precision=precision, **kwargs)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole run; infinite if nothing ends it."""
        steps = super().estimated_stepping_batches
        return min(steps, self._max_optimizer_steps) if self._max_optimizer_steps >= 0 else steps


HOST_THREADS = 4
"""Of PyTorch's operations on the host, beside a GPU: more only wake each other up, for the little that is left to them,
and wait in a loop for more, all of a large host's cores."""
LEAST = {
    "max_epochs": -1, "max_steps": -1, "accumulate_grad_batches": 1, "log_every_n_steps": 1,
    "check_val_every_n_epoch": 1, "num_sanity_val_steps": -1,
}  # fmt: skip
SWITCHES = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing")
PRECISIONS = (None, "auto", 32, "32", "32-true", "bf16", "bf16-mixed")
"""A loss isn't scaled for float16, since its gradient is taken before Lightning could; weights have model.dtype's."""


def _check(settings: dict[str, Any]) -> None:
    for key, least in LEAST.items():
        value = settings.get(key, least)
        if type(value) is not int or value < least:
            raise LorachainsError(f"trainer.{key} is {value!r}: give a whole number, {least} or more")
    clip = settings.get("gradient_clip_val")
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise LorachainsError(f"trainer.gradient_clip_val is {clip!r}: give a norm above 0, or null for no clipping")
    if settings.get("gradient_clip_algorithm", "norm") != "norm":
        raise LorachainsError(f"trainer.gradient_clip_algorithm is {settings['gradient_clip_algorithm']!r}: only norm")
    if settings.get("precision") not in PRECISIONS:
        raise LorachainsError(
            f"trainer.precision is {settings['precision']!r}: choose auto, bf16-mixed or 32-true; the weights' own "
            "is model.dtype"
        )
    for key in SWITCHES:
        check_switch(f"trainer.{key}", settings.get(key, True))
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if settings.get(key) == 0:
            raise LorachainsError(f"trainer.{key} is 0: each split is needed, give a number above 0")


def _several(settings: dict[str, Any]) -> bool:
    return devices(settings) * int(settings.get("num_nodes", 1)) > 1


def _check_strategy(strategy: str, settings: dict[str, Any]) -> None:
    if strategy not in ("auto", "ddp", "fsdp2"):
        raise LorachainsError(f"trainer.strategy is {strategy!r}: choose auto, ddp or fsdp2")
    if strategy == "fsdp2" and not _several(settings):
        raise LorachainsError("trainer.strategy=fsdp2 divides the model over devices: set trainer.devices to 2 or more")
    for key, size in {"limit_val_batches": "data.val_size", "limit_test_batches": "data.test_size"}.items():
        if _several(settings) and settings.get(key) not in (None, 1.0):
            raise LorachainsError(f"trainer.{key} is {settings[key]!r} on each of several devices: set {size} instead")
