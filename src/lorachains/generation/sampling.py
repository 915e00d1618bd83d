"""How a token is drawn from the logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lorachains.errors import LorachainsError


@dataclass(frozen=True)
class Sampling:
    """Sampling at a temperature, from the `top_k` likeliest tokens, and of those from the `top_p` likeliest mass.

    A row's n-th token takes the n-th number that the row's own seed draws, on the host: its text doesn't depend on the
    batch it is in, but for what the batch's shape changes in the rounding of the logits.

    Args:
        seeds: one for each row.
        top_k: all tokens by default.
        top_p: the likeliest tokens are kept until they have this probability together.

    Raises:
        LorachainsError: a setting is out of its range.
    """

    seeds: Sequence[int]
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        numbers = all(type(number) in (int, float) for number in (self.temperature, self.top_p))
        counted = self.top_k is None or (type(self.top_k) is int and self.top_k >= 1)
        if not (numbers and counted and 0 < self.temperature < math.inf and 0 < self.top_p <= 1):
            raise LorachainsError(
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p} can't be sampled with: "
                "give a temperature above 0, a top_k of at least 1 and a top_p in (0, 1]"
            )

    def uniform(self, steps: int) -> Float[Tensor, "rows steps"]:
        """The numbers in [0, 1) of each row's first tokens, on the host."""
        return torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds])

    def draw(self, logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, "rows 1"]) -> Int64[Tensor, "rows 1"]:
        """The token in whose share of the summed probabilities, likeliest first, each row's number falls."""
        kept = min(self.top_k or logits.shape[1], logits.shape[1])
        likeliest, token = (logits.float() / self.temperature).topk(kept)
        probability = likeliest.softmax(-1)
        before = probability.cumsum(-1) - probability
        mass = torch.where(before < self.top_p, probability, 0).cumsum(-1)
        return token.gather(1, (mass <= uniform * mass[:, -1:]).sum(1, keepdim=True))
