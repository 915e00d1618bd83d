"""One run on several devices: how many there are, and what their processes tell each other.

All make the same optimizer steps. Each computes the gradient of its share of every batch; the gradients are added up
once an optimizer step (`add_up`), so that all hold the same adapters at any time and decide alike. Evaluation batches
are dealt out in turn; the predictions are put together in the order of a single process (`interleaved`).
"""

import os
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lorachains.errors import LorachainsError

T = TypeVar("T")
STARTED = "LORACHAINS_STARTED"
"""The environment variable of a process that was started for a device."""


# -- how many devices --------------------------------------------------------------------------------------------------


def devices(trainer: Mapping[str, Any]) -> int:
    """The devices of this machine that the trainer's settings ask for.

    Raises:
        LorachainsError: `trainer.devices` is no number of devices, or more than there are.
    """
    given = trainer.get("devices", 1)
    there = torch.cuda.device_count() if on_gpu(trainer) else None
    if given in ("auto", -1, "-1"):
        return there or 1
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        return len(given)
    if isinstance(given, bool) or not str(given).isdecimal() or int(given) < 1:
        raise LorachainsError(f"trainer.devices is {given!r}: give a number, a list of the devices' indices, or auto")
    if there is not None and int(given) > there:
        raise LorachainsError(
            f"trainer.devices is {given}, but there are {there} GPUs: give {there or 'another accelerator'}"
        )
    return int(given)


def on_gpu(trainer: Mapping[str, Any]) -> bool:
    """Whether the trainer's settings ask for GPUs."""
    accelerator = trainer.get("accelerator", "auto")
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def to_start(trainer: Mapping[str, Any]) -> int:
    """How many processes have to be started for a run; 1 if this one will do, or torchrun or srun has started all.

    Raises:
        LorachainsError: see `devices`; or the run spans machines and nothing has started processes there.
    """
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return 1
    if trainer.get("num_nodes", 1) != 1:
        raise LorachainsError(
            f"trainer.num_nodes is {trainer['num_nodes']}: start a process for each device with torchrun or srun"
        )
    return devices(trainer)


def take_device(trainer: Mapping[str, Any]) -> None:
    """Makes this process's GPU its current one, before anything is put on another's."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available() and trainer.get("accelerator", "auto") != "cpu":
        given, rank = trainer.get("devices", 1), int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(rank if isinstance(given, int | str) else given[rank])


def home(trainer: Mapping[str, Any]) -> torch.device:
    """Where a run's model will be when it is trained; what is to be divided over devices (FSDP2) stays on the host."""
    if not on_gpu(trainer) or trainer.get("strategy") == "fsdp2":
        return torch.device("cpu")
    given = trainer.get("devices", 1)
    if "LOCAL_RANK" in os.environ or isinstance(given, int | str):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cuda", given[0])


def started_here() -> bool:
    """Whether this process is one that `processes.launch` has started."""
    return STARTED in os.environ


# -- what the processes tell each other --------------------------------------------------------------------------------


def world() -> int:
    """How many processes train this run together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def writes() -> bool:
    """Whether this is the process that writes the run's files."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def add_up(tensor: Tensor) -> Tensor:
    """The tensor's sum over the processes, in place; the same in all of them, bit for bit."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def gathered(item: T) -> list[T]:
    """Each process's item."""
    items: list[Any] = [item] * world()
    if world() > 1:
        dist.all_gather_object(items, item)
    return items


def interleaved(items: Sequence[T]) -> list[T]:
    """What was dealt out to the processes in turn, in the order of before."""
    missing: Any = object()
    rounds = zip_longest(*gathered(list(items)), fillvalue=missing)
    return [item for item in chain.from_iterable(rounds) if item is not missing]


def check_same(tensors: Sequence[Tensor], when: str) -> None:
    """Raises a LorachainsError, in every process, if the tensors aren't the same in all of them."""
    if world() == 1:
        return
    sums = [repr(number) for tensor in tensors for number in _checksums(tensor)]
    if len(set(map(tuple, gathered(sums)))) > 1:
        raise LorachainsError(
            f"the devices hold different weights {when}: they have computed the same step differently; "
            "use devices of one kind, and the same library versions on all machines"
        )


def _checksums(tensor: Tensor) -> list[float]:
    rows = tensor.detach().reshape(len(tensor), -1).double()
    return torch.cat([rows.sum(1), rows.norm(dim=1)]).tolist()
