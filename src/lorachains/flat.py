"""The live links of all banks side by side in one tensor: one row an adapter, and few kernels an optimizer step."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FlatLinks:
    """What an optimizer steps.

    Attributes:
        storage: `(experts, parameters)`.
        slices: its rows in one tensor, or in one for each slice of adapters (`split`).
    """

    def __init__(self) -> None:
        self.storage = torch.empty(0, 0)
        self.slices = [nn.Parameter(self.storage)]

    @torch.no_grad()
    def lay(self, tensors: Sequence[nn.Parameter]) -> None:
        """Takes over tensors `(experts, …)`, which become views. The storage stays where it is if they fit."""
        like, experts = tensors[0], len(tensors[0])
        shape = (experts, sum(tensor[0].numel() for tensor in tensors))
        if self.storage.shape != shape or (self.storage.device, self.storage.dtype) != (like.device, like.dtype):
            self.storage = like.new_empty(shape)
            self.split([len(rows) for rows in self.slices] if len(self.slices) > 1 else [experts])
        start = 0
        for tensor in tensors:
            view = self.storage[:, start : start + tensor[0].numel()].view(tensor.shape)
            start += tensor[0].numel()
            if view.data_ptr() != tensor.data_ptr():
                view.copy_(tensor)
                tensor.data = view

    def split(self, sizes: Sequence[int]) -> None:
        """Divides the rows into tensors of so many adapters each, for optimizers with settings of their own."""
        if len(sizes) != len(self.slices):
            self.slices = [nn.Parameter(torch.empty(0)) for _ in sizes]
        for parameter, rows in zip(self.slices, self.storage.split(list(sizes)), strict=True):
            parameter.grad = None
            parameter.data = rows

    def add_gradient(self, whole: Float[Tensor, "experts parameters"], weight: float) -> None:
        """Adds to the slices' gradients."""
        weighted = (whole * weight).split([len(p) for p in self.slices])  # one kernel, however many slices there are
        for parameter, rows in zip(self.slices, weighted, strict=True):
            parameter.grad = rows if parameter.grad is None else parameter.grad.add_(rows)
