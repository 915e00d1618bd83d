"""Rows from the Hugging Face hub, put back into the official distribution's form."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]  # not in its __all__

from lorachains.data.rows import Row
from lorachains.errors import LorachainsError

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub.

    Attributes:
        labels: the hub's label name to the official file's label, whose type may be another ("True" to true); None
            where rows have no label.
        nested: fields that the official file keeps one level down, in an object of this name; None for none.
        instead: what can be done where the hub can't be reached.
    """

    repository: str
    config: str
    labels: Mapping[str, Any] | None = None
    nested: str | None = None
    instead: str = (
        "set data.root=DIR, a folder with the official files "
        "(DIR/superglue/RTE/train.jsonl, DIR/glue/SST-2/train.tsv, …)"
    )

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of "train" or "validation" as the official files have them.

        Raises `LorachainsError` where the hub can't be reached and holds no copy in the local cache.
        """
        return self.official(self._load(split), split)

    def official(self, dataset: "Dataset", split: str) -> Iterator[Row]:
        """The rows of a loaded data set, with its label numbers and fields as in the official files."""
        for index, values in enumerate(dataset):
            nested = {self.nested: values} if self.nested else {}
            label = {} if self.labels is None else {"label": self._label(dataset, values["label"])}
            yield Row({**values, **nested, **label}, f"hub:{self.repository}/{self.config}/{split}#{index}")

    def _label(self, dataset: "Dataset", number: int) -> Any:
        """As in the official files; None where it isn't public."""
        return (self.labels or {}).get(dataset.features["label"].names[number]) if number >= 0 else None

    def _load(self, split: str) -> "Dataset":
        import datasets  # a second to import, and only this source needs it

        if not self._in_cache(datasets.config.HF_DATASETS_CACHE) and not self._reachable():
            raise LorachainsError(self._advice())
        try:
            return datasets.load_dataset(self.repository, self.config, split=split)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # what `datasets` raises for a missing set, config or split
            raise LorachainsError(f"{self._advice()} ({' '.join(str(error).split())})") from error

    def _in_cache(self, cache: Path | str) -> bool:
        return (Path(cache) / self.repository.replace("/", "___") / self.config).is_dir()

    def _reachable(self) -> bool:
        """Asks first: without a network, `load_dataset` retries for half a minute."""
        try:
            HfApi().dataset_info(self.repository, timeout=_TIMEOUT_S)
        except (HTTPError, OfflineModeIsEnabled) as error:
            log.debug("the hub doesn't give out %s: %s", self.repository, error)
            return False
        return True

    def _advice(self) -> str:
        return (
            f"the hub doesn't give out {self.repository}/{self.config} (no network?): {self.instead}, "
            "or use data=reasoning_gym"
        )
