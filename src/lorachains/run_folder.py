"""A run's folder: `config.yaml`, `metrics.json`, `predictions.jsonl`, `adapter/`, `model/` or `classifier/`,
`checkpoints/`, log."""

import json
import logging
import pickle
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)

ELSEWHERE = frozenset({"trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"})
"""Settings that say where a run is computed; it may be resumed elsewhere."""
OF_SEVERAL = ("chain.json", "selector.json", "confusion.json", "heat_map.json")
"""What methods of several adapters or of a selector also write. The first two say what a folder is."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by their names."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def knots(self) -> Path:
        return self.path / "knots.jsonl"

    @property
    def code(self) -> Path:
        """By what it was made (`provenance`)."""
        return self.path / "code.jsonl"

    @property
    def failure(self) -> Path:
        """Why it couldn't be made, in one line."""
        return self.path / "failure.txt"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def adapter_bytes(self) -> int:
        """The size on disk of what was saved of one adapter or several; 0 if none was."""
        files = (file for folder in (self.adapter, self.adapters) for file in folder.rglob("*"))
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def last(self) -> Path:
        """Holds the adapters as they were at the end of training, of a chain whose best epoch is an earlier one."""
        return self.path / "last"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def pictures(self) -> list[Path]:
        """As `heat_map.png`; those that there are."""
        return sorted(self.path.glob("*.png"))

    @property
    def classifier(self) -> Path:
        return self.path / "classifier"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def finished(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings has come to its end here.

        Raises:
            LorachainsError: a run with other settings has.
        """
        if not (self.metrics.is_file() and self.config.is_file()):
            return False
        self._check_same(settings)
        return True

    def check(self, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Whether the folder can be made ready for a run with these settings.

        Raises:
            LorachainsError: the folder holds results or a checkpoint that are neither to be resumed nor overwritten, or
                a run with other settings than the one to be resumed.
        """
        if (self.metrics.is_file() or self.checkpoint.is_file()) and not resume and not overwrite:
            raise LorachainsError(
                f"{self.path} already holds {'a finished' if self.metrics.is_file() else 'an unfinished'} run: "
                "add resume=true to go on with it, overwrite=true to start afresh, or choose another hydra.run.dir "
                "(hydra.sweep.dir in a multirun)"
            )
        if resume and self.config.is_file():
            self._check_same(settings)

    def begin(self, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Makes the folder ready for a run with these settings.

        Raises:
            LorachainsError: see `check`.
        """
        self.check(settings, resume, overwrite)
        if overwrite and not resume:
            several = (self.path / name for name in OF_SEVERAL)
            for old in (self.metrics, self.predictions, self.knots, self.config, self.code, *self.pictures, *several):
                old.unlink(missing_ok=True)
            written = (self.adapter, self.adapters, self.last, self.model, self.classifier, self.checkpoint.parent)
            for old in (*written, self.path / "csv"):
                shutil.rmtree(old, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, OmegaConf.to_yaml(OmegaConf.create(dict(settings))))

    def write_metrics(self, metrics: Mapping[str, float | int | str | None]) -> None:
        """Writes `metrics.json`: its presence says that the run is finished, so it is written whole or not at all."""
        write_whole(self.metrics, json.dumps(dict(metrics), indent=2) + "\n")

    def read_metrics(self) -> dict[str, Any]:
        """The metrics of a finished run.

        Raises:
            LorachainsError: the run isn't finished, or its metrics are damaged.
        """
        if not self.metrics.is_file():
            raise LorachainsError(f"{self.path} holds no finished run: metrics.json is missing")
        try:
            metrics = json.loads(self.metrics.read_text(encoding="utf-8"))
            if not isinstance(metrics, dict):
                raise ValueError("no object of metrics")
            return metrics
        except ValueError as error:
            raise LorachainsError(
                f"{self.metrics} can't be read as JSON ({error}): run it again with overwrite=true"
            ) from error

    def read_config(self) -> DictConfig:
        """The settings of the run.

        Raises:
            LorachainsError: they are missing or damaged.
        """
        try:
            settings = OmegaConf.load(self.config)
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LorachainsError(f"{self.config} can't be read ({reason}): copy the run's folder again") from error
        if not isinstance(settings, DictConfig) or not settings:
            raise LorachainsError(f"{self.config} holds no settings: copy the run's folder again")
        return settings

    def write_predictions(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Writes the test set's predictions, a JSON object a line."""
        write_whole(self.predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions))

    def write_knots(self, links: Iterable[Mapping[str, Any]]) -> None:
        """Writes what is told of the links of a chain, a JSON object a line."""
        write_whole(self.knots, "".join(json.dumps(link) + "\n" for link in links))

    def _check_same(self, settings: Mapping[str, Any]) -> None:
        before, now = (flat(OmegaConf.to_container(self.read_config())), flat(settings))
        for key in sorted((before.keys() | now.keys()) - ELSEWHERE):
            if before.get(key) != now.get(key):
                raise LorachainsError(
                    f"resume=true, but {key} is {now.get(key)!r} here and {before.get(key)!r} in {self.config}: "
                    "give the same settings, or another hydra.run.dir"
                )


def resumable(checkpoint: Path) -> Path | None:
    """The checkpoint, if there is one to go on from. Raises a LorachainsError if it is damaged."""
    if not checkpoint.is_file():
        log.warning("resume=true, but %s does not exist: starting from the beginning", checkpoint)
        return None
    _check_readable(checkpoint)
    return checkpoint


def _check_readable(checkpoint: Path) -> None:
    import torch  # not at the top: who reads a finished run's folder needs no PyTorch

    try:
        with zipfile.ZipFile(checkpoint) as parts:
            if damaged := parts.testzip():  # torch.load doesn't look at the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        torch.load(checkpoint, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LorachainsError(
            f"{checkpoint} can't be read ({reason}): it is damaged; delete it and start again without it"
        ) from error


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as one level of dotted keys."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {
        k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole, or as it was before."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
