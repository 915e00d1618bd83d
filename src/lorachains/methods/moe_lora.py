"""MoE-LoRA, with which MoA is compared (Tab. 7 and 8): the routers go by the token, and nobody tells them of domains.

Each block weighs the experts anew for each token, by the softmax over all of them or over the best `top_k`; the loss is
that of the answer alone, so that experts and routers learn from the answers. As many experts as MoA has, of the same
size. The paper begins with trained LoRAs (`experts`) or, "naive", with all experts at random; "MoE with top-k" adds the
load-balancing loss of Switch Transformers (Fedus et al. 2022). Products of all experts are made for each token.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lorachains.batch import TokenBatch
from lorachains.data.tokens import EvalBatch, Serving
from lorachains.decisions import soft_weights
from lorachains.errors import LorachainsError
from lorachains.methods.routed import Routed, check_not_recomputed
from lorachains.mixture_format import BY_TOKEN, save_routers
from lorachains.packing import packs
from lorachains.parallel import writes
from lorachains.routers import balance_losses
from lorachains.routing import SoftRoute
from lorachains.run_folder import RunFolder
from lorachains.transfer import save_adapter


class MoeLora(Routed):
    """Trains experts and token-level routers as one adapter.

    Args:
        names: the experts'. They serve no task in particular.
        balance: the weight of the load-balancing loss, 0 or more; its sum is the mean over blocks.
        others: see `Routed`.

    Raises:
        LorachainsError: a setting that makes no sense.
    """

    def __init__(self, *, names: Sequence[str], balance: float = 0.0, **kwargs: Any):
        super().__init__(names=names, decision="soft", reads="experts", **kwargs)
        if type(balance) not in (int, float) or not 0 <= balance < math.inf:
            raise LorachainsError(f"method.balance is {balance!r}: give a weight of 0 or more")
        check_not_recomputed(self.model, "method=moe_lora")
        self.experts, self.balance = list(names), balance
        generator = torch.Generator().manual_seed(self.seeds[0])  # equal ones would always choose the same experts
        with torch.no_grad():  # drawn on the host, so that they are the same wherever the model is
            self.routers.rows.copy_(
                torch.empty(self.routers.rows.shape, dtype=self.routers.rows.dtype).normal_(
                    std=0.02, generator=generator
                )
            )
        self.names, self.serving = ["adapter"], Serving()  # one row of what is logged, chosen and served

    def route(self, batch: TokenBatch) -> None:
        """All experts alike, for a pass in which tokens don't go their own ways: whatever is only tried out."""
        self.chain.route = SoftRoute(
            torch.full((1, self.chain.experts), 1 / self.chain.experts, device=self.chain.device)
        )

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        """`lm`, and `balance` if it has a weight: of the one row."""
        with self.mixture.by_token() as found:
            terms = super().losses(batch)
        if self.balance == 0:
            return terms
        logits = torch.stack([of_block.flatten(0, -2) for of_block in found])
        parts = balance_losses(logits, soft_weights(logits, self.mixture.top_k), self._counted(batch))
        return terms | {"balance": self.balance * parts.mean().unsqueeze(0)}

    def _counted(self, batch: TokenBatch) -> Bool[Tensor, " tokens"]:
        """Which of the tokens, as the model reads them, are no padding."""
        if not packs(self.model):
            return batch.padded().attention_mask.flatten() > 0
        every = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        return every < (len(every) if batch.own is None else batch.own)

    @property
    def compiled(self) -> bool:
        """Not with routes by the token."""
        return False

    def scoring(self) -> AbstractContextManager[object]:
        return self.mixture.by_token()

    def answers(self, batch: EvalBatch) -> tuple[Tensor, list[str]]:
        losses = self.passes.score(batch.scored)
        with self.mixture.by_token():
            return losses, self.passes.generate(batch) if batch.prompts else []

    # -- one row for all experts ---------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        rate = self._rates_at[self.trainer.global_step, :1]
        self.journal.note("train/lr", lambda: rate)
        self.journal.note("link", lambda: torch.ones_like(rate))

    def clip(self, max_norm: float) -> Float[Tensor, " experts"]:
        """All experts' and the routers' gradient as one."""
        return nn.utils.clip_grad_norm_(self.trained, max_norm).view(1)

    def snapshot(self, expert: int) -> dict[str, Any]:
        """Of all experts."""
        return {"experts": [super(MoeLora, self).snapshot(e) for e in range(self.chain.experts)]}

    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        super().restore(snapshots[0]["experts"])

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes the experts in PEFT's format, and the routers beside them."""
        if not writes():
            return {}
        for expert, name in enumerate(self.experts):
            rank = save_adapter(self.chain, folder.adapters / name, self.base.name, self._fingerprint, expert)
        save_routers(folder.adapters, self.about(self.experts, BY_TOKEN), self.routers.weight)
        return {"adapter/rank": rank}
