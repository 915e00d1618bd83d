"""A frozen model divided over devices: each holds a part of every weight, and gathers a layer's only to compute it.

PyTorch's FSDP2. What is trained is small and stays whole on each device.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lorachains.errors import LorachainsError


def shard(model: nn.Module, layers: Iterable[nn.Module], whole: Sequence[nn.Parameter], device: torch.device) -> None:
    """Divides the model's weights over all processes, in place; once.

    Args:
        layers: the decoder layers, each gathered by itself.
        whole: what stays whole in each process.

    Raises:
        LorachainsError: some weights are quantised.
    """
    if sharded(model):
        return
    kept = set(whole)
    if any(not p.is_floating_point() for p in model.parameters() if p not in kept):
        raise LorachainsError("trainer.strategy=fsdp2 can't divide quantised weights: use ddp, or another model.dtype")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*layers, model):
        # also the outermost one's weights are given back, so that a merge finds all of them divided
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)


def sharded(model: nn.Module) -> bool:
    """Whether the model's weights are divided."""
    return isinstance(model, FSDPModule)


def over_parts(model: nn.Module, *sums: float) -> list[float]:
    """Sums over each process's part of the weights, as sums over the whole weights."""
    if not sharded(model):
        return list(sums)
    total = torch.tensor(sums, dtype=torch.float64, device=next(model.parameters()).device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def local(weight: Tensor) -> Tensor:
    """This process's part of a weight, over the same memory: some of its rows; all of a weight that isn't divided."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def rows(weight: Tensor) -> slice:
    """Which rows `local` are."""
    if not isinstance(weight, DTensor):
        return slice(0, len(weight))
    each = -(-len(weight) // weight.device_mesh.size())
    start = min(each * weight.device_mesh.get_local_rank(), len(weight))
    return slice(start, start + len(weight.to_local()))
