"""Adapters as a decode step wants them: gathered, scaled and cast once, for the rows that they serve."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lorachains.bank import LoraBank
from lorachains.kernels import usable
from lorachains.stream_lora import add_lora

TOKENS, RANK, WEIGHTS = 16, 64, 1 << 20
"""LoRAs are added by one kernel to groups of up to so many tokens, as a decode step's, with up to so many ranks (it
takes no more), in layers of up to so many weights (in larger ones it is no faster than two batched products)."""


class Served:
    """One bank's links for groups of rows: each group is equally many rows of one adapter, side by side.

    Args:
        rank: of all links together.
        dtype: that of the layer's input.
    """

    def __init__(self, bank: LoraBank, groups: int, rank: int, dtype: torch.dtype):
        def empty(*shape: int) -> Tensor:
            return torch.empty(groups, *shape, dtype=dtype, device=bank.lora_A.device)

        self.a = empty(rank, bank.in_features)
        self.b = empty(bank.out_features, rank)
        self.bias = None if bank.lora_bias is None else empty(1, bank.out_features)
        self.small = rank <= RANK and bank.in_features * bank.out_features <= WEIGHTS

    def load(self, bank: LoraBank, adapters: Int64[Tensor, " groups"]) -> None:
        """Takes over the factors of each group's adapter, at the addresses that a graph knows."""
        ledger = self.a.shape[1] - bank.lora_A.shape[1]
        self.a[:, ledger:] = bank.lora_A[adapters]
        self.b[:, :, ledger:] = bank.lora_B[adapters] * bank.scaling[adapters].unsqueeze(1)
        if ledger:
            self.a[:, :ledger] = bank.ledger_A[adapters]
            self.b[:, :, :ledger] = bank.ledger_B[adapters] * bank.ledger_scale[adapters].unsqueeze(1)
        if self.bias is not None and bank.lora_bias is not None and bank.ledger_bias is not None:
            bias = bank.scaling * bank.lora_bias
            self.bias[:, 0] = (bias + bank.ledger_bias.sum(1) if ledger else bias)[adapters]

    def __call__(
        self, x: Float[Tensor, "*batch in_features"], y: Float[Tensor, "*batch out_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        """`y + scale · B A x`, written over the base layer's output `y`. Both may come as `(rows · seq, …)`."""
        groups = len(self.a)
        x, base = x.reshape(groups, -1, x.shape[-1]), y.reshape(groups, -1, y.shape[-1])
        base = base if self.bias is None else base + self.bias
        if self.small and x.shape[1] <= TOKENS and usable(x):
            add_lora(base, x, self.a, self.b)
        else:
            base.baddbmm_(torch.bmm(x, self.a.mT), self.b.mT)
        return base.view(y.shape)


def total_rank(bank: LoraBank) -> int:
    """The rank of all links that are not merged into the base."""
    return bank.lora_A.shape[1] + (0 if bank.merged else bank.ledger_A.shape[1])


@contextmanager
def serving(banks: Sequence[LoraBank], served: Sequence[Served]) -> Iterator[None]:
    """Within, the banks serve these groups of rows, or follow their route where `served` is empty."""
    for bank, links in zip(banks, served, strict=False):
        bank.served = links
    try:
        yield
    finally:
        for bank in banks:
            bank.served = None
