"""The bare model: zero-shot, and in-context learning (COLA, arXiv 2401.04151, §5.1 "Methods Compared", Table 2)."""

import logging
from collections.abc import Sequence

from lorachains.data.demonstrations import check_number, demonstrated
from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.methods.method import Method
from lorachains.models import LanguageModel

log = logging.getLogger(__name__)


class ZeroShot(Method):
    """Answers with the model as it is; one run alone.

    Args:
        base: the model and its tokenizer.
        seed: of the run; nothing is drawn.

    Raises:
        LorachainsError: there are several runs.
    """

    def __init__(self, base: LanguageModel, seed: int | Sequence[int]):
        super().__init__(base, seed, select="last")
        if len(self.seeds) > 1:
            raise LorachainsError(f"{len(self.seeds)} runs that train nothing share nothing: make them one by one")


class Icl(ZeroShot):
    """In-context learning: answered training rows stand before each prompt.

    Args:
        base: the model and its tokenizer.
        seed: which training rows are drawn.
        demonstrations: how many, if as many fit; see `demonstrated`. With 0 it is `ZeroShot`.

    Raises:
        LorachainsError: `demonstrations` is no whole number of at least 0, or there are several runs.
    """

    def __init__(self, base: LanguageModel, seed: int | Sequence[int], demonstrations: int):
        super().__init__(base, seed)
        check_number("method.demonstrations", demonstrations)
        self.demonstrations = demonstrations
        self._mean = 0.0

    def reads(self, data: RunsDataModule) -> RunsDataModule:
        positions = getattr(self.model.config, "max_position_embeddings", None)
        data.setup()
        [run] = data.runs
        if self.base.pruned and self.demonstrations:
            raise LorachainsError("model.prune_vocab keeps the tokens of single rows: set it to false with method=icl")
        run, self._mean = demonstrated(run, self.demonstrations, self.seeds[0], positions)
        return RunsDataModule([run])

    def figures(self) -> dict[str, float]:
        """How many demonstrations a test prompt has, in the mean."""
        return {"icl/demonstrations": self._mean}
