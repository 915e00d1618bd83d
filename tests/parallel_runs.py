"""The runs that `test_parallel.py` makes on one device and on several: in functions that a new process can import."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate

from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.methods import Lora, Method
from lorachains.parallel import check_same, gathered, interleaved, writes
from lorachains.run_folder import RunFolder, resumable
from lorachains.session import Session
from lorachains.sharding import local
from tests.runs import Log, language_model, make_data, settings

KNOTS = ["method=cola", "knots=at_steps", "knots.steps=[3,9]"]
"""Within the first epoch, and within the second; 7 batches an epoch."""
SCENARIOS: dict[str, list[str]] = {
    "lora": ["trainer.max_epochs=2"],
    "accumulated and clipped": [
        *KNOTS[:2], "knots.steps=[2]", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.05",
        "trainer.max_epochs=2",
    ],
    "ledger": [*KNOTS, "trainer.max_epochs=2"],
    "merge": [*KNOTS, "knots.mode=merge", "trainer.max_epochs=2"],
    "plateau": [
        "method=cola", "knots=plateau", "knots.patience=1", "knots.min_steps=1", "knots.decay=0.0",
        "trainer.max_epochs=2",
    ],
    "free answers": ["trainer.max_steps=4"],
    "an empty share": ["trainer.max_epochs=1"],
    "runs side by side": ["trainer.max_steps=5"],
    "an adapter for each task": ["trainer.max_steps=5"],
    "all weights": ["method=full", "optim=sgd", "optim.lr=0.1", "trainer.max_steps=5", "trainer.gradient_clip_val=0.5"],
    "nothing trained": ["method=icl", "method.demonstrations=2"],
}  # fmt: skip
DROPOUT = {"dropout": ["adapter.lora_dropout=0.3", "trainer.max_steps=3"]}
"""Equals no run on one device: each device drops numbers of its own."""
DATA: dict[str, dict[str, Any]] = {
    "free answers": {"tasks": ["free", "stub"], "max_new_tokens": 4},
    "an adapter for each task": {"tasks": ["stub", "stub2", "stub3"]},  # a share may lack one
    "nothing trained": {"max_length": 200},
    "an empty share": {"batch_size": 2},  # 27 rows: one is left for the last batch
}
METHOD: dict[str, dict[str, Any]] = {
    "runs side by side": {"seed": [3, 4]},
    "an adapter for each task": {"names": ["stub", "stub2", "stub3"]},
}


class Killed(Exception):
    pass


class Kill(L.Callback):
    """Ends the run after some optimizer step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


class Seeds(L.Callback):
    """Keeps the seed of each batch's random numbers."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(torch.initial_seed())


def train(
    root: Path, scenario: str, *trainer: str, callbacks: Sequence[L.Callback] = (), resume: bool = False
) -> Method:  # fmt: skip
    """A whole run of the scenario in `root / scenario`, in float64."""
    more = METHOD.get(scenario, {})
    folders = [RunFolder(root / scenario / str(seed)) for seed in more.get("seed", [0])]
    if writes():
        for folder in folders:
            folder.begin({"scenario": scenario}, resume, overwrite=False)
    overrides = (SCENARIOS | DROPOUT)[scenario]
    L.seed_everything(0, verbose=False)
    composed = settings(*overrides, *trainer)
    method: Method = instantiate(composed.method, base=language_model("llama", torch.float64), **more)
    logs = [Log() for _ in folders]
    data = [make_data(method.base, order_seed=i, **DATA.get(scenario, {})) for i in range(len(folders))]
    session = Session(method, RunsDataModule(data), folders, logs, folders[0].checkpoint, every=1)
    used = [*session.callbacks, *callbacks]
    fitted = instantiate(composed.trainer, callbacks=used, logger=logs, log_every_n_steps=1)
    session.fit(fitted, resumable(folders[0].checkpoint) if resume else None)
    assert not any(isinstance(outcome, Exception) for outcome in session.finish())
    return method


def stop(root: Path, scenario: str, *trainer: str) -> None:
    """A run that ends with an exception within its second epoch, after a knot, and leaves a checkpoint."""
    try:
        train(root, scenario, *trainer, callbacks=[Kill(10)])
    except Killed:
        return
    raise AssertionError("the run was to be killed")


def train_all(root: Path, scenarios: Iterable[str], *trainer: str) -> None:
    """All scenarios in turn."""
    for scenario in scenarios:
        train(root, scenario, *trainer)


def parts(method: Method) -> list[float]:
    """How much of each targeted weight this process holds."""
    assert isinstance(method, Lora)
    weights = [bank.base_layer.weight for bank in method.chain.banks.values()]
    return [local(weight).numel() / weight.numel() for weight in weights]


def on_two_devices(root: Path, stopped_on_one: Path, *trainer: str) -> dict[str, Any]:
    """Everything that the tests compare with one device, since it takes long to start processes.

    Returns:
        The devices' seeds after a run with dropout, how much of the weights the first device has at the end, by
        strategy, and what `tell` gives.
    """
    ddp = [*trainer, "trainer.devices=2"]
    fsdp2 = [*ddp, "trainer.strategy=fsdp2"]
    train_all(root / "ddp", SCENARIOS, *ddp)
    train_all(root / "fsdp2", ("accumulated and clipped", "ledger", "merge"), *fsdp2)
    seeds = Seeds()
    train(root / "ddp", "dropout", *ddp, callbacks=[seeds])
    held: dict[str, Any] = {"seeds": gathered(seeds.seen)}
    for name, strategy in {"ddp": ddp, "fsdp2": fsdp2}.items():
        stop(root / f"{name} resumed", "merge", *strategy)
        held[name] = parts(train(root / f"{name} resumed", "merge", *strategy, resume=True))
    stop(root / "stopped on two", "merge", *ddp)
    train(stopped_on_one, "merge", *ddp, resume=True)
    return held | tell()


def tell() -> dict[str, Any]:
    """What the processes hear of each other."""
    rank = torch.distributed.get_rank()
    told = {"gathered": gathered(rank), "interleaved": interleaved([["a", "c"], ["b"]][rank])}
    check_same([torch.full((2, 3), torch.nan)], "after step 6")
    try:
        check_same([torch.ones(2, 3) + rank * torch.eye(2, 3) * 1e-7], "after step 7")
    except LorachainsError as error:
        return told | {"differing": str(error)}
    return told


def fail_on_the_second() -> None:
    """Only the second process raises; the first waits for it."""
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=2)
    if torch.distributed.get_rank() == 1:
        raise LorachainsError("the second device's own")
    torch.distributed.barrier()
