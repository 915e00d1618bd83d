"""What the tests of runs side by side share: jobs of a tiny model on the stub's data, and what they have left."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from lorachains.jobs import Job, train_jobs
from lorachains.models import LanguageModel
from lorachains.run_folder import RunFolder
from tests.runs import TIMES, language_model, settings

DATA = {
    "_target_": "tests.data.stub.stub_module", "tasks": ["stub"], "train_size": 27, "val_size": 5,
    "test_size": 6, "seed": 0, "order_seed": "${seed}", "batch_size": 4, "max_new_tokens": 4,
}  # fmt: skip
OF_THE_GROUP = ("run/side_by_side",)
"""Metrics that say how a run was made."""


def model(arch: str, dtype: str) -> LanguageModel:
    """The same random model at each call."""
    return language_model(arch, getattr(torch, dtype))


def job(folder: Path, *overrides: str, arch: str = "llama", dtype: str = "float64", **data: Any) -> Job:
    """A run of the stub's data, 7 optimizer steps an epoch, into `folder`."""
    cfg = settings("trainer.log_every_n_steps=5", "checkpoint_seconds=0", "trainer.accelerator=cpu", *overrides).copy()
    OmegaConf.set_struct(cfg, False)
    cfg.model = {"_target_": "tests.jobs.model", "arch": arch, "dtype": dtype}
    cfg.data = {**DATA, **data}
    cfg.logger.save_dir = str(folder)
    OmegaConf.resolve(cfg)
    return Job(cfg, RunFolder(folder))


def trained(jobs: list[Job]) -> None:
    """Makes the runs, side by side, which are to come to their end."""
    for outcome in train_jobs(jobs):
        if isinstance(outcome, Exception):
            raise outcome


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a run has learned, of all its adapters."""
    files = folder.glob("**/adapter_model.safetensors")
    return {f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def distance(folder: Path, other: Path) -> float:
    """How far apart two runs' adapters are: of all tensors the greatest `‖ours − theirs‖ / ‖theirs‖`."""
    ours, theirs = adapter(folder), adapter(other)
    assert ours.keys() == theirs.keys() != set()
    return max(float((ours[key] - value).norm() / value.norm()) for key, value in theirs.items())


def metrics(folder: Path) -> dict[str, Any]:
    """A run's metrics, but for those of time and memory."""
    read = RunFolder(folder).read_metrics()
    return {key: value for key, value in read.items() if not key.endswith(TIMES) and key not in OF_THE_GROUP}


def logged(folder: Path) -> dict[tuple[int, str], float]:
    """What a run has logged, by optimizer step and name; but for times."""
    path = max(folder.glob("csv/*/metrics.csv"))  # of the last process
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {
        (int(row["step"]), name): float(value)
        for row in rows
        for name, value in row.items()
        if value and name != "step" and not name.endswith(TIMES) and name not in OF_THE_GROUP
    }


def predictions(folder: Path) -> list[dict[str, Any]]:
    """A run's predictions."""
    return [json.loads(line) for line in RunFolder(folder).predictions.read_text().splitlines()]


def links(folder: Path) -> list[dict[str, Any]]:
    """What is told of the links of a run's chain; nothing without one."""
    path = RunFolder(folder).knots
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def close(ours: Any, theirs: Any, tolerance: float) -> bool:
    """Whether two structures are the same but for their numbers, which may differ by so much relatively."""
    match ours, theirs:
        case dict(), dict():
            return ours.keys() == theirs.keys() and all(close(ours[key], theirs[key], tolerance) for key in theirs)
        case list(), list():
            pairs = zip(ours, theirs, strict=False)
            return len(ours) == len(theirs) and all(close(a, b, tolerance) for a, b in pairs)
        case float(), float():
            return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)
        case _:
            return type(ours) is type(theirs) and ours == theirs


def same(folder: Path, other: Path, tolerance: float) -> bool:
    """Whether two runs have left the same adapter, metrics, log, predictions and links."""
    return distance(folder, other) <= tolerance and all(
        close(read(folder), read(other), tolerance) for read in (metrics, logged, predictions, links)
    )
