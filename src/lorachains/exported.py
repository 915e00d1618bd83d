"""A chain taken off its base: the factors of its links side by side, as one adapter. What can be done with them alone:
go back to a knot, measure the links, find the best adapter of a smaller rank.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from peft import LoraConfig
from torch import Tensor

from lorachains.errors import LorachainsError
from lorachains.lowrank import best_approximation, norm


@dataclass(frozen=True)
class Link:
    """One link of a chain: its rank, and the optimizer steps done when it was tied (`None`: it was the live one)."""

    rank: int
    knot: int | None


@dataclass(frozen=True)
class Factors:
    """All links of one layer; the layer's update is `ΔW = scale · B A`.

    Attributes:
        a: `(Σ rank, in_features)`.
        b: `(out_features, Σ rank)`.
        bias: `(links, out_features)`, each link's, to be multiplied by the scale; `None` without `lora_bias`.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ExportedChain:
    """One adapter's chain without its base.

    Attributes:
        config: the adapter's, with the name of its base.
        fingerprint: of the weights that it was trained on; `None` where nobody knows.
        scale: what all products are multiplied by.
        besides: whole parameters that come with the adapter and replace the base's, by name
            (PEFT's `modules_to_save`).
    """

    config: LoraConfig
    fingerprint: str | None
    links: tuple[Link, ...]
    layers: Mapping[str, Factors]
    scale: float
    besides: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The ranks of all links together."""
        return sum(link.rank for link in self.links)

    def first(self, links: int, key: str = "links") -> "ExportedChain":
        """The chain of its first links alone: as it was right after the last one's knot, its live link still zero.

        Of no link the first one's `A` is kept, with a `B` of zero. `key` is the setting that has the number.

        Raises:
            LorachainsError: there aren't as many links, or parameters were trained that belong to no link.
        """
        if type(links) is not int or not 0 <= links <= len(self.links):
            raise LorachainsError(
                f"{key} is {links!r}, but the chain has {len(self.links)}: choose 0…{len(self.links)}"
            )
        if self.besides:
            raise LorachainsError(
                f"the adapter holds {min(self.besides)} whole, which belongs to no link: it can't be rewound"
            )
        if not links:
            return replace(self, links=(Link(self.links[0].rank, None),), layers=self._nothing(self.links[0].rank))
        rank = sum(link.rank for link in self.links[:links])
        layers = {
            name: Factors(f.a[:rank], f.b[:, :rank], None if f.bias is None else f.bias[:links])
            for name, f in self.layers.items()
        }
        return replace(self, links=self.links[:links], layers=layers)

    def compressed(self, rank: int) -> tuple["ExportedChain", dict[str, float]]:
        """The adapter of one link of this rank whose updates are nearest to the chain's, in the Frobenius norm.

        Returns:
            The adapter, and each layer's relative error `‖ΔW − ΔW′‖ / ‖ΔW‖` with that of all layers together under "".

        Raises:
            LorachainsError: no rank of at least 1.
        """
        if type(rank) is not int or rank < 1:
            raise LorachainsError(f"rank is {rank!r}: give the new adapter's rank, at least 1")
        layers, lost, whole = {}, dict[str, float](), dict[str, float]()
        for name, f in self.layers.items():
            b, a, error = best_approximation(self.scale * f.b, f.a, rank)
            layers[name] = Factors(a, b, None if f.bias is None else self.scale * f.bias.sum(0, keepdim=True))
            lost[name], whole[name] = error, norm(self.scale * f.b, f.a)
        errors = {name: lost[name] / whole[name] if whole[name] else 0.0 for name in layers}
        total = _length(whole.values())
        adapter = replace(self, links=(Link(rank, None),), layers=layers, scale=1.0)
        return adapter, {"": _length(lost.values()) / total if total else 0.0} | errors

    def norms(self) -> list[float]:
        """Each link's `‖ΔW‖`, Frobenius, of all layers together."""
        norms, start = [], 0
        for link in self.links:
            ranks = slice(start, start + link.rank)
            norms.append(self._norm(ranks))
            start += link.rank
        return norms

    @property
    def norm(self) -> float:
        """The whole chain's `‖ΔW‖`."""
        return self._norm(slice(None))

    def _norm(self, ranks: slice) -> float:
        return abs(self.scale) * _length(norm(f.b[:, ranks], f.a[ranks]) for f in self.layers.values())

    def _nothing(self, rank: int) -> dict[str, Factors]:
        return {
            name: Factors(f.a[:rank], torch.zeros_like(f.b[:, :rank]), None if f.bias is None else 0 * f.bias[:1])
            for name, f in self.layers.items()
        }


def _length(lengths: Iterable[float]) -> float:
    return sum(length**2 for length in lengths) ** 0.5
