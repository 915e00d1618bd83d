"""What the tests of methods, callbacks and runs share: small runs of the project's own parts, without Hydra's app."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor

from lorachains.config import conf_dir
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.jobs import stack
from lorachains.methods import Cola, Lora, Method
from lorachains.models import LanguageModel, byte_tokenizer
from lorachains.models.language_model import ready_to_train
from lorachains.run_folder import RunFolder, resumable
from lorachains.session import Session
from tests.data.stub import stub_module
from tests.tiny import tiny_model

PER_EPOCH = 7
"""Batches of an epoch of the stub's data: 27 rows, 4 a batch."""
DIVERGING = ["optim=sgd", "optim.lr=1e6", "+optim.optimizer.weight_decay=1.0"]
"""Each optimizer step multiplies what is trained by a million."""
TIMES = ("seconds", "per_second", "bytes")
"""Endings of the metrics that no two runs have in common."""


@cache
def settings(*overrides: str) -> DictConfig:
    """The config that `python -m lorachains.train` composes of the overrides. Not to be changed: it is kept."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=["model=tiny", "optim.lr=5e-3", *overrides])


def language_model(arch: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> LanguageModel:
    """A random model, with fields of its config; the same one at each call."""
    return ready_to_train(tiny_model(arch, dtype, **fields), byte_tokenizer(), f"tiny-{arch}")


def any_method(*overrides: str, base: LanguageModel | None = None, **fields: Any) -> Method:
    """The config's method over a random model.

    Args:
        fields: of the method, in place of the config's.
    """
    method = instantiate(settings(*overrides).method, base=base or language_model(), **fields)
    assert isinstance(method, Method)
    return method


def make_method(*overrides: str, base: LanguageModel | None = None, **fields: Any) -> Lora:
    """The same where it is LoRA or a kind of it."""
    method = any_method(*overrides, base=base, **fields)
    assert isinstance(method, Lora)
    return method


def side_by_side(*runs: Sequence[str]) -> Lora:
    """The methods of several runs, by their overrides, as one."""
    method = stack([instantiate(settings(*o).method, _partial_=True) for o in runs], language_model())
    assert isinstance(method, Lora)
    return method


def make_data(base: LanguageModel, **changes: Any) -> TaskDataModule:
    """27 training, 5 validation and 6 test rows of the stub's task."""
    return stub_module(base.tokenizer, **changes)


class Log(Logger):
    """Keeps in memory what is logged.

    Attributes:
        rows: (step, metrics), in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "log"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def of(self, key: str) -> list[float]:
        """All values of one metric, in order."""
        return [metrics[key] for _, metrics in self.rows if key in metrics]


def make_trainer(
    *overrides: str, callbacks: Sequence[L.Callback] = (), logger: Logger | list[Log] | None = None
) -> L.Trainer:
    """The config's trainer, quiet, logging every step."""
    trainer = instantiate(
        settings("trainer.max_epochs=3", "trainer.log_every_n_steps=1", *overrides).trainer,
        callbacks=list(callbacks), logger=logger or Log(), accelerator="cpu",
    )  # fmt: skip
    assert isinstance(trainer, L.Trainer)
    return trainer


def fit(
    method: Method,
    *overrides: str,
    callbacks: Sequence[L.Callback] = (),
    logger: Logger | list[Log] | None = None,
    module: RunsDataModule | TaskDataModule | None = None,
    **data: Any,
) -> L.Trainer:
    """Trains the method on the stub's data, or on a data module's."""
    trainer = make_trainer("+trainer.enable_progress_bar=false", *overrides, callbacks=callbacks, logger=logger)
    trainer.fit(method, module or make_data(method.base, **data))
    return trainer


def run(
    folder: Path,
    *overrides: str,
    base: LanguageModel | None = None,
    callbacks: Sequence[L.Callback] = (),
    resume: bool = False,
    every: int = 1,
    data: dict[str, Any] | None = None,
) -> Method:
    """A whole session in `folder`, as `train.py` runs it: fit (or go on), test, save."""
    files = RunFolder(folder)
    files.begin({"overrides": list(overrides)}, resume, overwrite=False)
    checkpoint = resumable(files.checkpoint) if resume else None
    L.seed_everything(0, verbose=False)
    method = any_method(*(o for o in overrides if not o.startswith("trainer.")), base=base)
    log = Log()
    module = RunsDataModule([make_data(method.base, **data or {})])
    session = Session(method, module, [files], [log], files.checkpoint, every)
    trainer = make_trainer(
        *(o for o in overrides if o.startswith("trainer.")), callbacks=[*session.callbacks, *callbacks], logger=log
    )
    session.fit(trainer, checkpoint)
    [outcome] = session.finish()
    assert not isinstance(outcome, Exception)
    return method


def cola(method: Method) -> Cola:
    """The method, which is COLA."""
    assert isinstance(method, Cola)
    return method


class States(L.Callback):
    """Keeps the chain's tensors after each optimizer step, before any knot there.

    Attributes:
        after: optimizer steps done to the tensors by name.
    """

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.after[trainer.global_step] = {k: v.clone() for k, v in pl_module.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def outcome(folder: Path) -> tuple[bytes, dict[str, Any], str, str]:
    """What a finished run left: adapter or model, metrics that aren't times, predictions, and links of a chain."""
    files = RunFolder(folder)
    metrics = {k: v for k, v in files.read_metrics().items() if not k.endswith(TIMES)}
    [learned] = [*files.adapter.glob("*.safetensors"), *files.model.glob("*.safetensors")]
    links = files.knots.read_text() if files.knots.is_file() else ""
    return learned.read_bytes(), metrics, files.predictions.read_text(), links
