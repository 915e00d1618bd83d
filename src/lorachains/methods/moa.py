"""MoA: Mixture-of-LoRAs (arXiv 2403.03432): one LoRA expert for each domain, one router for each decoder block.

Two stages. First the experts alone, all in one pass, each on its own domain's rows. Then experts and routers together,
with the base frozen:

    L = L_LM + η · mean over blocks of the routers' cross-entropy on the domain label, each text counting once.

What the paper leaves open is an option, with these defaults. In stage 2 each text is served by its domain's expert
(`route="label"`): L_LM then trains exactly the experts that stage 1 trained, and the routers learn from the label
alone. By the routers' own decisions ("straight_through", "soft") an expert is also trained on what was misrouted to it,
and L_LM trains the routers, at the price of all experts' products for each token. What routers read is made by the base
alone (`reads="base"`, see `mixture`): once for all epochs of stage 2, since it is always the same, unless that takes
too much of a GPU's memory; then by a pass over the texts in each step, which takes no gradient. If the experts read
("experts"), the label's expert makes what later blocks' routers learn from, which gives the label away: with SmolLM2
and eight domains all blocks then followed the first one, and 89 % of texts went right.

As it is kept, a router's step on more texts than the batch's costs next to nothing: the cross-entropy is the mean over
`router_batch_size` texts, the batch's own and others of the training rows. Routers have few weights and learn by small
steps; on the eight domains they would else still be learning when the experts are at their end.

η is 1 and the routers' learning rate 1e-1: a router is a linear function of numbers of the size 1, and begins at zero.
With an optimizer such as Adam, whose step doesn't depend on the gradient's size, η hardly changes what the routers
learn; if the experts read, it does change these, since the cross-entropy reaches the experts of the blocks below.

Rows without a label (`data.unlabelled=true`) are taken in stage 2, beside the others: their answers' mean loss is one
more term of L_LM, and the routers' cross-entropy leaves them out. A label says which expert is to answer; where it is
missing, each block's router's probabilities stand in for it (`unlabelled="soft"`). That has an exact gradient, by which
answers teach routers too, and favours no expert while routers know nothing: they begin at zero, where "argmax" (no
gradient) and "straight_through" (a biased one) send all such texts to the first expert. Where routers are sure, the
three are the same. A batch with such rows costs all experts' products. Stage 1, and stage 2 if no router learns in it,
leave them out.

With η = 0 and routes by label, stage 2 is the control *Single continued*: the experts trained on for as long, each
alone.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorachains.base_reader import OtherTexts
from lorachains.batch import TokenBatch
from lorachains.data.tokens import NO_TASK, Encoded, EvalBatch, collate_eval, padding_token, prompt_of
from lorachains.domains import DomainLosses, Routes, perplexities
from lorachains.errors import LorachainsError, check_positive, check_switch
from lorachains.evaluation import score_of
from lorachains.methods.continued import LoraContinued
from lorachains.methods.lora import Lora
from lorachains.methods.routed import Routed, check_not_recomputed
from lorachains.mixture import Training
from lorachains.mixture_figures import draw_blocks, draw_heat_map
from lorachains.mixture_format import save_routers, write_card
from lorachains.packing import packs
from lorachains.routers import router_losses
from lorachains.run_folder import RunFolder, write_whole

log = logging.getLogger(__name__)


class Moa(LoraContinued, Routed):
    """Trains domain experts, then experts and routers.

    Args:
        names: the domains, in the order of the data's tasks.
        stage1_epochs: see `LoraContinued`; `None` for none where experts are given.
        eta: the weight η of the routers' cross-entropy, 0 or more.
        eta_schedule: "constant", or "linear" for a weight that falls to 0 over stage 2.
        route: how texts are routed in stage 2: "label", "straight_through" or "soft".
        unlabelled: how those without a label are, beside routes by label: "soft", "straight_through" or "argmax".
            Beside other routes they go as all do.
        router_batch_size: of how many texts the routers' cross-entropy is the mean, where what the base reads is kept:
            the batch's own, and others drawn at random. `None` for the batch's own alone.
        heat_map: whether each domain's test loss is taken with each expert.
        others: see `LoraContinued` and `Routed`.

    Raises:
        LorachainsError: a setting that makes no sense.
    """

    takes_unlabelled, some_unlabelled = True, False
    _eta: Tensor

    def __init__(
        self, *, experts: str | Mapping[str, str] | None = None, stage1_epochs: int | None = None,
        eta: float = 1.0, eta_schedule: str = "constant", route: Training = "label", unlabelled: Training = "soft",
        router_batch_size: int | None = None, heat_map: bool = True, **kwargs: Any,
    ):  # fmt: skip
        given = stage1_epochs is None and experts is not None
        _check(eta, eta_schedule, route, unlabelled)
        super().__init__(experts=experts, stage1_epochs=0 if given else stage1_epochs, **kwargs)
        self.eta, self.eta_schedule, self.way, self.heat_map = eta, eta_schedule, route, heat_map
        self.unlabelled = unlabelled if route == "label" else route
        self.register_buffer("_eta", torch.tensor(float(eta)), persistent=False)  # read by a pass that is replayed
        self._begin_to_tell()
        self._told: dict[str, float] = {}
        self._number: dict[int, int] = {}
        self.router_batch_size = router_batch_size
        self._others: OtherTexts | None = None
        if router_batch_size is not None:
            check_positive("method.router_batch_size", router_batch_size)
        check_switch("method.heat_map", heat_map)
        if route != "label":
            check_not_recomputed(self.model, f"method.route={route}")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        [run] = self.data.runs
        self.some_unlabelled = run.unlabelled > 0
        if self.some_unlabelled:
            check_not_recomputed(self.model, "data.unlabelled=true")

    # -- training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " experts"]]:
        """`lm`, and in stage 2 `router`: η times each domain's part of the mean over the batch's texts.

        Of data with rows without a label also `unlabelled`: their mean loss, an equal part of it for each expert.
        """
        if not self.routing_learned:
            return super().losses(batch)
        with self.mixture.training(batch, self.way, self.unlabelled) as (prompts, pooled):
            means = self.means(batch)
        experts = len(self.names)
        terms = {"lm": means[:experts]}
        if self.some_unlabelled or len(means) > experts:  # the same terms for all batches of a run
            terms["unlabelled"] = (means[experts:].sum() / experts).expand(experts)
        if self.eta == 0:
            return terms
        read, domains = torch.stack(pooled), prompts.domains(experts)
        if self._others is not None and batch.numbers is not None:
            read, domains = self._others.beside(read, domains)
        return terms | {"router": self._eta * router_losses(self.routers.logits(read), domains)}

    @property
    def routing_learned(self) -> bool:
        """Whether routers learn: not in stage 1, and not in its continuation, with η = 0 and routes by label."""
        return self.continuing and self._routers_learn

    @property
    def _routers_learn(self) -> bool:
        return self.eta > 0 or self.way != "label"

    @property
    def layout(self) -> int:
        return super().layout + self.continuing

    def on_train_start(self) -> None:
        [run] = self.data.runs
        run.since.epoch = self.boundary // self.steps_per_epoch if self._routers_learn else math.inf
        if run.unlabelled and run.since.epoch:
            when = "in stage 1" if math.isfinite(run.since.epoch) else "since no router learns"
            log.info("%d training rows without a label are left out %s", run.unlabelled, when)
        super().on_train_start()
        self.data.number(self._numbers)
        others = (self.router_batch_size or 0) - run.batch_size
        if others > 0 and self.mixture.reads == "base":
            owners = [len(self.names) if row.task == NO_TASK else row.task for row in run.rows("train")]
            self._others = OtherTexts(self.mixture.by_base, others, torch.tensor(owners, device=self.device))
        if self.way != "label":  # each text is served by all experts then
            self.presence[self.boundary :] = True
        span = self.total_steps - self.boundary
        left = [max(0.0, 1 - max(0, step - self.boundary) / span) for step in range(self.total_steps)]
        self._etas = self.eta * (torch.tensor(left) if self.eta_schedule == "linear" else torch.ones(len(left)))
        self._etas = self._etas.to(self.device)

    def _numbers(self, rows: Sequence[Encoded]) -> Sequence[int] | None:
        """Training rows' numbers among all, where what the routers read of them is the same in each epoch."""
        in_stage_1 = self.trainer.global_step < self.boundary  # stage 2's first batch is made before that begins
        if in_stage_1 or not self._routers_learn or self.mixture.reads != "base":
            return None
        if not self._number:
            [run] = self.data.runs
            every = run.rows("train")
            self._number = {id(row): number for number, row in enumerate(every)}
            self.mixture.by_base.keep([prompt_of(row) for row in every], padding_token(self.base.tokenizer))
        return [self._number[id(row)] for row in rows]

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._eta.copy_(self._etas[self.trainer.global_step])
        if self._others is not None and self.continuing:
            # As those of dropout, the random numbers of a batch depend on the seed and its number alone.
            self._others.draw(self.seeds[0] * 1_000_003 + self.trainer.fit_loop.epoch_loop.total_batch_idx)

    # -- evaluation: routed, and by label beside it --------------------------------------------------------------------

    def criteria(self, summaries: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
        """Experts and routers that learn together are of one moment, chosen by the experts' means over the domains."""
        if not self.routing_learned:
            return summaries
        means = {"score": fmean(map(score_of, summaries)), "loss": fmean(s["loss"] for s in summaries)}
        return [means] * len(summaries)

    def answers(self, batch: EvalBatch) -> tuple[Tensor, list[str]]:
        """Those of each text's own decision; those of its label where routers learn nothing."""
        if not self.routing_learned:
            return super().answers(batch)
        self._losses.note("oracle", batch, self.passes.score(batch.scored))
        if self.heat_map and self.trainer.testing:
            for expert, name in enumerate(self.names):
                alone = self._served(batch, [expert] * len(batch.rows))
                self._losses.note(name, batch, self.passes.score(alone.scored))
        pad = padding_token(self.base.tokenizer)
        logits = self.mixture.logits([prompt_of(row) for row in batch.rows], pad)
        self._routes.note([row.task for row in batch.rows], logits)
        if self.mixture.one_each:
            return self.passes.evaluate(self._served(batch, self.mixture.experts(logits).tolist()))
        texts = [(number, choice) for number, row in enumerate(batch.rows) for choice in row.choices]
        losses = self.mixture.losses([text for _, text in texts], [number for number, _ in texts], logits, pad)
        batch.adapters = None  # each block's banks follow its own decisions
        with self.mixture.decided(logits):
            return losses, self.passes.generate(batch) if batch.prompts else []

    def _served(self, batch: EvalBatch, experts: Sequence[int]) -> EvalBatch:
        """The batch with an expert for each of its rows."""
        rows = [(0, replace(row, task=expert)) for row, expert in zip(batch.rows, experts, strict=True)]
        found = collate_eval(rows, self.serving, padding_token(self.base.tokenizer), share=packs(self.model))
        found.rows = batch.rows
        placed: EvalBatch = self.passes.place(found, self.device)
        return placed

    def _begin_to_tell(self) -> None:
        self._routes = Routes(self.names, self.mixture.mode, self.mixture.voters)
        self._losses = DomainLosses(self.names)

    def _tell(self, split: str) -> None:
        """Logs what routers found and, as far as experts alone were asked, what was lost."""
        if self.routing_learned:
            summaries = self.adapter_summaries(split)
            routed = {name: summary["loss"] for name, summary in zip(self.names, summaries, strict=True)}
            found = self._routes.metrics() | self._losses.metrics("oracle")
            found |= perplexities("routed", routed)
            self._told = {f"{split}/{key}": value for key, value in found.items()}
            if split != "test" or 0 not in self.settled:
                self.journal.log(0, self._told)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._begin_to_tell()

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._begin_to_tell()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._tell("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._tell("test")

    # -- what is kept --------------------------------------------------------------------------------------------------

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes the experts; routers that have learned, and a card, beside them."""
        metrics = super().save(run, folder)
        if self.routing_learned:
            about = self.about(self.names, self.routers.pool)
            save_routers(folder.adapters, about, self.routers.weight)
            write_card(folder.adapters, about, self._told)
        return metrics

    def load(self, folder: Path) -> None:
        """What stage 2 has left: where no router has learned, the experts alone."""
        self.continuing = True
        if self.routing_learned:
            super().load(folder)
        else:
            Lora.load(self, folder)

    def report(self, run: int, folder: Path | None) -> dict[str, float]:
        """What routers found, and what was lost; a heat map, the confusion and the blocks' accuracies."""
        if folder is None or not self.routing_learned:
            return self._told
        folder.mkdir(parents=True, exist_ok=True)
        if heat_map := self._losses.heat_map():
            write_whole(folder / "heat_map.json", json.dumps(heat_map, indent=2) + "\n")
            draw_heat_map(heat_map, folder / "heat_map.png")
        blocks = [self._told[f"test/router/block/{block}"] for block in range(self.routers.blocks)]
        self._routes.confusion().write(folder)
        draw_blocks(blocks, self._told["test/router/voted"], folder / "router_blocks.png")
        return self._told


def _check(eta: float, eta_schedule: str, route: str, unlabelled: str) -> None:
    if type(eta) not in (int, float) or not 0 <= eta < math.inf:
        raise LorachainsError(f"method.eta is {eta!r}: give a weight of 0 or more")
    if eta_schedule not in ("constant", "linear"):
        raise LorachainsError(f"method.eta_schedule is {eta_schedule!r}: choose constant or linear")
    if route not in ("label", "straight_through", "soft"):
        raise LorachainsError(f"method.route is {route!r}: choose label, straight_through or soft")
    if unlabelled not in ("soft", "straight_through", "argmax"):
        raise LorachainsError(f"method.unlabelled is {unlabelled!r}: choose soft, straight_through or argmax")
