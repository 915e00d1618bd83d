"""PEFT adapters of one base, ours or others', put into the banks of a chain: one for each of its experts."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.inject import scaling
from lorachains.peft_format import check_base, read_config
from lorachains.transfer import load_adapter


@torch.no_grad()
def load_experts(
    chain: Chain, folders: Sequence[Path], base_name: str, base_fingerprint: str, activated: bool = False
) -> None:
    """Reads an adapter into each of the chain's experts, with its own alpha.

    Args:
        activated: see `read_adapter`.

    Raises:
        LorachainsError: an adapter is missing or damaged, was trained on another base, or has another rank or other
            layers than the chain.
    """
    for expert, folder in enumerate(folders):
        check_base(folder, base_name, base_fingerprint)
        config = read_config(folder)
        if config.r != chain.rank:
            raise LorachainsError(
                f"{folder} has rank {config.r}, but adapter.r is {chain.rank}: set adapter.r={config.r}"
            )
        load_adapter(chain, folder, expert, activated)
        chain.configs[expert] = config
        for bank in chain.banks.values():
            bank.scaling[expert] = scaling(config, config.r)
