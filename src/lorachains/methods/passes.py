"""The passes of a method over its model, of training with gradients and of evaluation: plain, or replayed as graphs."""

import logging
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorachains.batch import BLOCK, TokenBatch
from lorachains.data.tokens import EvalBatch
from lorachains.errors import LorachainsError
from lorachains.evaluation import candidate_losses, generate, generator
from lorachains.filling import Sizes, filled
from lorachains.generation import Generator
from lorachains.graphs import Replayed, compile_layers, why_not
from lorachains.memory import out_of_memory
from lorachains.scoring import answer_losses
from lorachains.sharding import sharded

if TYPE_CHECKING:
    from lorachains.methods.method import Method

log = logging.getLogger(__name__)


class Passes:
    """Runs a method's passes.

    Args:
        method: whose `route` is called, and whose `losses` and `differentiate` if it trains.
    """

    def __init__(self, method: "Method"):
        self.method = method
        self._train: Replayed | None = None
        self._evaluate: Replayed | None = None
        self._compiled = False
        self._generator: Generator | None = None
        self.longest = 0
        self._sizes = {"train": Sizes(), "evaluate": Sizes()}

    def prepare(self, mode: str) -> None:
        """Chooses how passes are run: `trainer.compile`, "auto" (where it can be done), "true" or "false".

        Raises:
            LorachainsError: another mode, or "true" where it can't be done.
        """
        if mode.lower() not in ("auto", "true", "false"):
            raise LorachainsError(f"trainer.compile is {mode!r}: choose auto, true or false")
        model, self._mode = self.method.model, mode.lower()
        with self._training_precision():
            why = "its weights are divided over devices" if sharded(model) else why_not(model) or self.method.why_plain
        if self._mode == "true" and why:
            raise LorachainsError(f"trainer.compile is true, but {why}: use auto or false")
        if why or self._mode == "false":
            if why and model.device.type == "cuda":
                log.warning("not compiled (trainer.compile=auto): %s", why)
            return
        filling = BLOCK - 1 if self.method.serving.bank > 1 else 0  # of a block
        self.longest = max(run.longest() for run in self.method.data.runs) + filling
        self._sizes = {"train": Sizes(), "evaluate": Sizes()}
        if self.method.compiled and not self._compiled:
            compile_layers(model, self.method.compiled_beside)
            self._compiled = True
        self._seen = self.method.layout, _shapes(model)
        self._train = Replayed(self._forward_backward, model.device, self._layout)
        if why_not(model) is None:  # evaluation may be more exact
            self._evaluate = Replayed(self._score, model.device, self._layout)

    def _training_precision(self) -> AbstractContextManager[None]:
        return self.method.trainer.precision_plugin.forward_context()

    def _layout(self) -> int:
        """The method's. What was compiled before a tensor has got another shape in place, as at a knot with another
        rank, is forgotten: its guards may not notice that (those of torch 2.11 don't)."""
        layout, shapes = self._seen
        if self.method.layout != layout:
            self._seen = self.method.layout, _shapes(self.method.model)
            if self._seen[1] != shapes:
                torch.compiler.reset()
        return self.method.layout

    def rehearse(self) -> None:
        """Makes the largest passes of the run's first stage, so that memory runs out now rather than later."""
        if self._train is None:
            return
        start, model, epochs = time.perf_counter(), self.method.model, self.method.trainer.max_epochs or 1
        train, evaluation = self.method.data.largest(max(1, epochs))
        try:
            for _ in ("plain", "recorded"):
                with self._training_precision():
                    self._train(self._filled(train, "train", largest=True))
            model.eval()
            if self._evaluate is not None:
                for _ in ("plain", "recorded"):
                    self._evaluate(self._filled(evaluation.scored, "evaluate", largest=True))
            torch.cuda.synchronize()
        except Exception as error:  # the compiler's own kinds, and CUDA's
            if out_of_memory(error):
                raise
            why = next(iter(str(error).splitlines()), type(error).__name__)
            if self._mode == "true":
                raise LorachainsError(f"trainer.compile is true, but the model can't be compiled: {why}") from error
            log.warning("not compiled (trainer.compile=auto): %s", why)
            self._train = self._evaluate = None
            if self._compiled:
                compile_layers(model, self.method.compiled_beside, back=True)
                self._compiled = False
        else:
            done = "compiled" if self._compiled else "recorded, not compiled,"
            log.info("%s in %.0f s: batches of up to %d tokens", done, time.perf_counter() - start, train.tokens)
        finally:
            model.train()

    @property
    def replayed(self) -> bool:
        """Whether passes are replayed, so that what they read must stay where it is."""
        return self._train is not None

    def place(self, batch: Any, device: torch.device) -> Any:
        """The batch where its pass wants it: filled up on the host for a graph, else on the device."""
        if self._train is not None and isinstance(batch, TokenBatch):
            return self._filled(batch, "train").pin_memory()
        if self._evaluate is not None and isinstance(batch, EvalBatch):
            adapters = None if batch.adapters is None else batch.adapters.to(device)
            return EvalBatch(
                batch.runs, batch.rows, self._filled(batch.scored, "evaluate").pin_memory(), batch.prompts, adapters,
                batch.starts,
            )  # fmt: skip
        return batch.to(device)

    def _filled(self, batch: TokenBatch, kind: str, largest: bool = False) -> TokenBatch:
        return filled(batch, self.longest, self._sizes[kind].of(batch, largest))

    def train(self, batch: TokenBatch) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Each adapter's losses by term, and the gradient of their sum as the method's `differentiate` gives it.

        Where several devices share a batch, they are parts: the sum over the devices is the batch's.
        """
        found = self._forward_backward(batch) if self._train is None else self._train(batch)
        terms = {name: term.clone() for name, term in zip(self._terms, found, strict=False)}
        return terms, found[len(terms) :]

    def evaluate(self, batch: EvalBatch) -> tuple[Tensor, list[str]]:
        """The loss of each candidate in nats a token, and the free answers."""
        return self.score(batch.scored), self.generate(batch) if batch.prompts else []

    def score(self, scored: TokenBatch) -> Tensor:
        """The loss of each candidate in nats a token."""
        if self._evaluate is None:
            with torch.compiler.set_stance("force_eager"):
                (losses,) = self._score(scored)
        else:
            (losses,) = self._evaluate(scored)
        return candidate_losses(scored, losses)

    def _forward_backward(self, batch: TokenBatch) -> tuple[Tensor, ...]:
        self.method.route(batch)
        terms = self.method.losses(batch)
        if batch.shares is not None:
            terms = {name: term * batch.shares.to(term.dtype) for name, term in terms.items()}
        self._terms = list(terms)
        gradient = self.method.differentiate(torch.stack(list(terms.values())).sum())
        return *(term.detach() for term in terms.values()), *gradient

    @torch.no_grad()
    def _score(self, batch: TokenBatch) -> tuple[Tensor, ...]:
        self.method.route(batch)
        with self.method.scoring():
            return (answer_losses(self.method.model, batch),)

    def generator(self) -> Generator:
        """What continues prompts."""
        method = self.method
        if self._generator is None:
            graphs = self._evaluate is not None or not method.trains  # else what decoding reads moves and changes
            self._generator = generator(method.base, graphs, method.data.stop)
        return self._generator

    def generate(self, batch: EvalBatch) -> list[str]:
        """The free answers to a batch's prompts."""
        most = self.method.data.runs[0].max_new_tokens
        prompts = batch.prompts
        return generate(self.generator(), self.method.base.tokenizer, prompts, most, batch.adapters, batch.starts)


def _shapes(model: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in (*model.parameters(), *model.buffers())]
