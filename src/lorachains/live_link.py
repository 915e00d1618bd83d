"""A moment of one adapter of a chain, kept apart, and the way back to it: each adapter has a best epoch of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorachains.chain import Chain


@dataclass(frozen=True)
class LiveLink:
    """One adapter's live link when the chain had `links` tied links: its rows of the banks' tensors, by layer."""

    links: int
    layers: dict[str, dict[str, Tensor]]


def live_link(chain: Chain, expert: int) -> LiveLink:
    """A copy of one adapter's live link, with which `restore` finds back to this moment."""
    names = ("lora_A", "lora_B", "lora_bias", "scaling")
    return LiveLink(
        len(chain.ranks),
        {
            layer: {n: t[expert].detach().clone() for n in names if (t := getattr(bank, n)) is not None}
            for layer, bank in chain.banks.items()
        },
    )


@torch.no_grad()
def restore(chain: Chain, live: Sequence[LiveLink]) -> None:
    """Brings each adapter back to its own moment: the links tied by then, and the live link of then.

    Where adapters go back to different knots, a later link of the others is zero for them.

    Args:
        live: one for each adapter.
    """
    chain.rewind(max(link.links for link in live))
    rank = max(next(iter(link.layers.values()))["lora_A"].shape[0] for link in live)
    for name, bank in chain.banks.items():
        bank.extend(bank.lora_A.new_zeros(chain.experts, rank, bank.in_features), bank.scaling[:, 0].clone())
        for expert, link in enumerate(live):
            for key, value in link.layers[name].items():
                row = getattr(bank, key).data[expert]
                row[tuple(slice(size) for size in value.shape)].copy_(value)
            bank.ledger_B[expert, :, sum(chain.ranks[: link.links]) :] = 0
            if bank.ledger_bias is not None:
                bank.ledger_bias[expert, link.links :] = 0
    chain.flatten()
