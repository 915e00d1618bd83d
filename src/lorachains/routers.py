"""MoA's routers (arXiv 2403.03432, Fig. 4 and Tab. 4): one bias-free linear layer for each decoder block.

A router reads the block's input over a text's prompt, never its answer's tokens, and gives a logit for each expert.
Which tokens are read and how they are put together (the pool) the paper leaves open:

- "mean_rms", the default: the mean over the prompt's tokens, each divided by its root mean square. A few tokens (the
  first one above all) have norms hundreds of times those of the others in the middle of a model, and would be the whole
  mean.
- "mean": the same without that.
- "last": the prompt's last token alone. Where prompts end in words that are the same for all (a template's), the first
  block can't tell domains apart by it.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lorachains.batch import BLOCK, IGNORED, TokenBatch
from lorachains.errors import LorachainsError

POOLS = ("mean_rms", "mean", "last")


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of a batch are, in the layout in which the model reads it.

    Attributes:
        inside: which tokens are a text's prompt; none of a text that is only padding. Tokens are those of the stream,
            or all rows' one after the other.
        last: the place of each prompt's last token; -1 without one.
        owner: the adapter that serves each text; one more than there are, of a text of none.
    """

    inside: Bool[Tensor, "texts tokens"]
    last: Int64[Tensor, " texts"]
    owner: Int64[Tensor, " texts"]
    _known: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def there(self) -> Bool[Tensor, " texts"]:
        """Which texts have a prompt."""
        return self.last >= 0

    def domains(self, experts: int) -> Int64[Tensor, " texts"]:
        """Each text's domain of so many; one more, of a text without a label or without a prompt."""
        return torch.where(self.there, self.owner, experts)

    def labelled(self, experts: int) -> Bool[Tensor, " texts"]:
        """Which texts are of one of so many experts."""
        return self.owner < experts

    def weights(self, pool: str, dtype: torch.dtype) -> Float[Tensor, "texts tokens"]:
        """Of each token in a text's pool; found once for all blocks."""
        if (pool, dtype) not in self._known:
            self._known[pool, dtype] = self._weights(pool, dtype)
        return self._known[pool, dtype]

    def _weights(self, pool: str, dtype: torch.dtype) -> Tensor:
        if pool == "last":
            place = torch.arange(self.inside.shape[1], device=self.last.device)
            return (place == self.last.unsqueeze(1)).to(dtype)
        return self.inside.to(dtype) / self.inside.sum(1, keepdim=True).clamp(min=1)

    def spread(self, of_text: Float[Tensor, "texts n"], bounds: Int64[Tensor, " bounds"]) -> Float[Tensor, "tokens n"]:
        """What each text has, for each of its tokens."""
        place = torch.arange(self.inside.shape[1], device=bounds.device)
        return of_text[(torch.bucketize(place, bounds, right=True) - 1).clamp(max=len(of_text) - 1)]


def find_prompts(
    positions: Int64[Tensor, " answers"], targets: Int64[Tensor, " answers"], bounds: Int64[Tensor, " bounds"],
    tokens: int, owner: Int64[Tensor, " texts"],
) -> Prompts:  # fmt: skip
    """The prompts of texts that lie between `bounds`: from a text's beginning to the token before its first answer
    token.

    Args:
        positions: the place of the token before each answer token.
        targets: the answer tokens; those IGNORED don't count.
    """
    text = torch.bucketize(positions, bounds, right=True) - 1
    counted = torch.where(targets == IGNORED, tokens, positions)
    first = torch.full_like(bounds[:-1], tokens).scatter_reduce(0, text, counted, "amin")
    last = torch.where(first == tokens, -1, first)
    place = torch.arange(tokens, device=bounds.device)
    inside = (place >= bounds[:-1].unsqueeze(1)) & (place <= last.unsqueeze(1))
    return Prompts(inside, last, owner)


def stream_prompts(batch: TokenBatch) -> tuple[Prompts, Int64[Tensor, " bounds"]]:
    """The prompts of a stream's segments, and the segments' bounds. No texts may share their beginnings."""
    assert batch.keys is None
    assert batch.adapters is not None
    bounds, blocks = batch.bounds.long(), len(batch.adapters)
    owner = batch.adapters[(bounds[:-1] // BLOCK).clamp(max=blocks - 1)]
    return find_prompts(batch.positions, batch.targets, bounds, len(batch.input_ids), owner), bounds


def padded_prompts(batch: TokenBatch) -> tuple[Prompts, Int64[Tensor, " bounds"]]:
    """The prompts of the rows into which the texts are padded, and where each row begins in all of them."""
    padded = batch.padded()
    assert padded.adapters is not None
    rows, width = padded.input_ids.shape
    bounds = torch.arange(rows + 1, device=padded.input_ids.device) * width
    return find_prompts(padded.positions, batch.targets, bounds, rows * width, padded.adapters), bounds


class Pool(nn.Module):
    """Puts the tokens of each text together. A module, so that it can be compiled like a decoder layer.

    Args:
        normalises: whether each token is divided by its root mean square first.
    """

    def __init__(self, normalises: bool):
        super().__init__()
        self.normalises = normalises

    def forward(
        self, x: Float[Tensor, "*batch hidden"], weights: Float[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts hidden"]:
        """The weighted sum of tokens of each text, in the precision of the weights."""
        x = x.reshape(-1, x.shape[-1]).to(weights.dtype)
        return weights @ (normalised(x) if self.normalises else x)


class Routers(nn.Module):
    """The routers of all blocks. They begin at zero: no expert is preferred, and nothing depends on a seed.

    Args:
        hidden: the size of a block's input.
        pool: how a prompt's tokens are put together, see the module's text.

    Attributes:
        rows: `(experts, blocks · hidden)`, an expert a row, as all that is an expert's own.

    Raises:
        LorachainsError: an unknown pool.
    """

    def __init__(
        self, experts: int, blocks: int, hidden: int, pool: str = "mean_rms", dtype: torch.dtype = torch.float32
    ):
        super().__init__()
        if pool not in POOLS:
            raise LorachainsError(f"method.pool is {pool!r}: choose {', '.join(POOLS)}")
        self.blocks, self.hidden, self.pool = blocks, hidden, pool
        self.pooling = Pool(pool == "mean_rms")
        self.rows = nn.Parameter(torch.zeros(experts, blocks * hidden, dtype=dtype))

    @property
    def weight(self) -> Float[Tensor, "blocks experts hidden"]:
        """The weights by block."""
        return self.rows.view(len(self.rows), self.blocks, self.hidden).transpose(0, 1)

    def pooled(self, x: Float[Tensor, "*batch hidden"], prompts: Prompts) -> Float[Tensor, "texts hidden"]:
        """What a router reads of each text: the pool of a block's input."""
        pooled: Tensor = self.pooling(x, prompts.weights(self.pool, self.rows.dtype))
        return pooled

    def logits(self, pooled: Float[Tensor, "blocks texts hidden"]) -> Float[Tensor, "blocks texts experts"]:
        """All blocks' logits for each text, of what their routers read."""
        return pooled @ self.weight.mT

    def block_logits(
        self, block: int, x: Float[Tensor, "*batch hidden"], prompts: Prompts
    ) -> Float[Tensor, "texts experts"]:
        """A block's logits for each text."""
        return self.pooled(x, prompts) @ self.weight[block].mT

    def token_logits(self, block: int, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch experts"]:
        """A block's logits for each token, as a mixture of experts has them."""
        return normalised(x.to(self.rows.dtype)) @ self.weight[block].mT


def normalised(x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
    """Each token divided by its root mean square."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-12)


def balance_losses(
    logits: Float[Tensor, "blocks tokens experts"],
    weights: Float[Tensor, "blocks tokens experts"],
    counted: Bool[Tensor, " tokens"],
) -> Float[Tensor, " blocks"]:
    """The load-balancing loss of each block (Fedus et al. 2022, eq. 4): `experts · Σ_e f_e P_e`.

    `f_e` is the share of choices that fall on expert e, of which each token makes as many as it has positive weights,
    and `P_e` the mean probability. 1 where all experts are used alike.

    Args:
        counted: which tokens are no padding.
    """
    there = counted.to(logits.dtype).unsqueeze(-1)
    chosen = (weights > 0) * there
    shares = chosen.sum(1) / chosen.sum((1, 2)).unsqueeze(1)
    return logits.shape[-1] * (shares * (logits.softmax(-1) * there).sum(1) / there.sum()).sum(-1)


def router_losses(
    logits: Float[Tensor, "blocks texts experts"], domain: Int64[Tensor, " texts"]
) -> Float[Tensor, " experts"]:
    """The routers' cross-entropy (nats) on the domain label, its mean over blocks and over texts.

    Each text counts once, however long it is.

    Args:
        domain: of each text; as many as there are experts, of one that doesn't count.

    Returns:
        Each domain's part of it: they add up to the mean over all texts.
    """
    experts = logits.shape[-1]
    owner = domain.clamp(max=experts - 1)
    labels = owner.expand(len(logits), -1)
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(0)
    counted = (domain < experts).to(each.dtype)
    parts = each.new_zeros(experts).index_add(0, owner, each * counted)
    return parts / counted.sum().clamp(min=1)
