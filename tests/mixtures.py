"""What the tests of mixtures share: random experts and routers over random models."""

from typing import Any

import torch
from torch import Tensor

from lorachains.mixture import Mixture
from tests.generation.texts import chain_of

ARCHITECTURES = ["llama", "qwen2", "opt", "bloom"]


def mixture_of(arch: str, experts: int = 3, seed: int = 0, targets: str | None = None, **fields: Any) -> Mixture:
    """Whose blocks are of different opinions on most texts."""
    mixture = Mixture(chain_of(arch, experts, **({"target_modules": targets} if targets else {})), **fields)
    generator = torch.Generator().manual_seed(seed)
    rows = mixture.routers.rows
    rows.data = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows.dtype)
    return mixture


def tolerance(mixture: Mixture) -> float:
    """Also in float64 models take norms and rotary embeddings in float32."""
    return 1e-6 if mixture.routers.rows.dtype == torch.float64 else 2e-3


def by_hand(x: Tensor, pool: str) -> Tensor:
    """What a router reads of a prompt `(tokens, hidden)`: a loop over its tokens, in float64."""
    tokens = [token.double() for token in x]
    if pool == "last":
        return tokens[-1]
    if pool == "mean_rms":
        tokens = [token / token.square().mean().sqrt() for token in tokens]
    return sum(tokens[1:], tokens[0]) / len(tokens)
