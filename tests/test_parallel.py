"""A run on two devices equals the run on one, to rounding: on two processes of the CPU, and on two GPUs (`-m gpu`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorachains.errors import LorachainsError
from lorachains.parallel import devices, home, to_start
from lorachains.processes import launch
from lorachains.run_folder import RunFolder
from tests.parallel_runs import SCENARIOS, fail_on_the_second, on_two_devices, stop, train, train_all
from tests.runs import TIMES, make_trainer

SHARDED = ("accumulated and clipped", "ledger", "merge")


GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=GPUS)])
def accelerator(request: pytest.FixtureRequest) -> str:
    """The override that chooses it."""
    return f"trainer.accelerator={request.param}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> Path:
    """The runs on one device."""
    root = tmp_path_factory.mktemp("runs")
    train_all(root / "one", SCENARIOS, accelerator)
    stop(root / "stopped on one", "merge", accelerator)
    return root


@pytest.fixture(scope="module")
def two(runs: Path, accelerator: str) -> dict[str, Any]:
    """The runs on two; those that were stopped are gone on with on the other number of devices."""
    said = launch(on_two_devices, runs, runs / "stopped on one", accelerator, processes=2)
    train(runs / "stopped on two", "merge", accelerator, resume=True)
    return said


def equal(ours: Path, theirs: Path) -> None:
    """The same adapter or model by norm, and the same metrics and predictions to rounding."""
    mine, their = RunFolder(ours), RunFolder(theirs)
    for saved in their.path.rglob("*.safetensors"):
        a, b = load_file(mine.path / saved.relative_to(their.path)), load_file(saved)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.linalg.norm(a[key] - b[key]) <= 1e-8 * torch.linalg.norm(b[key]), key
    assert _numbers(mine.read_metrics()) == pytest.approx(_numbers(their.read_metrics()), rel=1e-9)
    for row, other in zip(_rows(mine), _rows(their), strict=True):
        assert [x for x in row if isinstance(x, str)] == [x for x in other if isinstance(x, str)]
        assert [x for x in row if not isinstance(x, str)] == pytest.approx([x for x in other if not isinstance(x, str)])


def _numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if not key.endswith(TIMES)}


def _rows(folder: RunFolder) -> list[list[Any]]:
    """The predictions in their order, each without nesting."""
    rows = [json.loads(line) for line in folder.predictions.read_text().splitlines()]
    return [
        [*row.pop("candidates"), *row.pop("also_right"), *row.pop("scores").values(), *row.values()] for row in rows
    ]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ddp(scenario: str, runs: Path) -> None:
    for folder in (runs / "one" / scenario).iterdir():
        equal(runs / "ddp" / scenario / folder.name, folder)


@pytest.mark.usefixtures("two")
def test_all_devices_see_a_plateau(runs: Path) -> None:
    """Each has a share of the loss only."""
    metrics = RunFolder(runs / "ddp" / "plateau" / "0").read_metrics()
    assert metrics["train/links"] > 1


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("scenario", SHARDED)
def test_fsdp2(scenario: str, runs: Path) -> None:
    equal(runs / "fsdp2" / scenario / "0", runs / "one" / scenario / "0")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("where", ["ddp resumed", "fsdp2 resumed", "stopped on one", "stopped on two"])
def test_stopped_and_resumed(where: str, runs: Path) -> None:
    """On as many devices as before, or on more or fewer."""
    equal(runs / where / "merge" / "0", runs / "one" / "merge" / "0")


def test_what_the_processes_tell_each_other(two: dict[str, Any]) -> None:
    assert two["gathered"] == [0, 1]
    assert two["interleaved"] == ["a", "b", "c"]
    assert "different weights after step 7" in two["differing"]


def test_fsdp2_divides_the_weights(two: dict[str, Any]) -> None:
    """Also after merges and a resume."""
    assert set(two["ddp"]) == {1.0}
    assert set(two["fsdp2"]) == {0.5}


def test_each_device_drops_numbers_of_its_own(two: dict[str, Any]) -> None:
    """The run has checked by itself that they hold the same adapters all the same."""
    first, second = two["seeds"]
    assert len({*first, *second}) == 6, "3 batches on each"


def test_an_error_on_one_device_ends_all() -> None:
    with pytest.raises(LorachainsError) as caught:
        launch(fail_on_the_second, processes=2)
    assert str(caught.value) == "the second device's own"
    assert "in fail_on_the_second" in "".join(caught.value.__notes__)


SMALL = [
    "method=cola", "model=tiny", "knots.links=2", "trainer.max_epochs=2",
    "data.train_size=8", "data.val_size=3", "data.test_size=3", "data.max_new_tokens=2", "trainer.accelerator=cpu",
]  # fmt: skip


def command(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    multirun, module = ["-m"] if "-m" in overrides else [], [sys.executable, "-m", "lorachains.train"]
    arguments = [*module, *multirun, *SMALL, *(o for o in overrides if o != "-m")]
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


def test_the_command(tmp_path: Path) -> None:
    done = command(tmp_path, "trainer.devices=2", "data.batch_size=4", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    files = RunFolder(tmp_path / "two")
    assert files.read_metrics()["train/optimizer_steps"] == 4
    logged = (tmp_path / "two" / "train.log").read_text()
    for log in (logged, done.stdout):
        assert log.count("knot 1 tied after optimizer step 2") == 1, "one process logs, to the file and to the console"


@pytest.mark.slow
def test_a_multirun_and_a_refusal(tmp_path: Path) -> None:
    """Each job starts its own processes, which don't run the sweep again; a job that fails leaves the others alone."""
    done = command(tmp_path, "-m", "trainer.devices=2", "data.batch_size=4,1,8", "hydra.sweep.dir=runs")
    assert done.returncode == 1
    assert "data.batch_size is 1, shared by 2 devices" in done.stderr
    finished = [folder for folder in (tmp_path / "runs").iterdir() if (folder / "metrics.json").is_file()]
    assert len(finished) == 2


@pytest.mark.slow
def test_replicas(tmp_path: Path) -> None:
    jobs = ["-m", "seed=0,1", "data.batch_size=4", "hydra/launcher=replicas"]
    for devices_, folder in ((1, "one"), (2, "two")):
        done = command(tmp_path, *jobs, f"trainer.devices={devices_}", f"hydra.sweep.dir={folder}")
        assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        one, two = (next((tmp_path / name).glob(f"*-seed{seed}-*/metrics.json")) for name in ("one", "two"))
        ours, theirs = (_numbers(RunFolder(path.parent).read_metrics()) for path in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(("given", "count"), [(1, 1), ("2", 2), ([1], 1), ([0, 3], 2), ("auto", 1), (-1, 1)])
def test_devices(given: object, count: int) -> None:
    assert devices({"devices": given, "accelerator": "cpu"}) == count


def test_a_models_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there before adapters are drawn; the one that `take_device` has chosen where there are several."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert home({"accelerator": "cpu"}) == home({"strategy": "fsdp2", "devices": 2}) == torch.device("cpu")
    assert home({}) == home({"accelerator": "gpu", "devices": 1}) == torch.device("cuda", 3)
    assert home({"devices": [2]}) == torch.device("cuda", 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert home({"devices": [2, 3]}) == torch.device("cuda", 3)


@pytest.mark.parametrize("given", [0, -2, "all", True, [], None, 1.5])
def test_no_number_of_devices(given: object) -> None:
    with pytest.raises(LorachainsError, match=r"^trainer\.devices is "):
        devices({"devices": given, "accelerator": "cpu"})


def test_processes_that_something_else_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"devices": 2, "accelerator": "cpu"}
    assert to_start(settings) == 2
    with pytest.raises(LorachainsError, match=r"trainer\.num_nodes is 2: start .* torchrun or srun"):
        to_start(settings | {"num_nodes": 2})
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert to_start(settings | {"num_nodes": 2}) == 1
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert to_start(settings | {"num_nodes": 2}) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.strategy=deepspeed"], "trainer.strategy is 'deepspeed': choose auto, ddp or fsdp2"),
        (["trainer.strategy=fsdp2"], "trainer.strategy=fsdp2 .* set trainer.devices to 2 or more"),
        (["trainer.devices=2", "+trainer.limit_val_batches=2"], r"limit_val_batches is 2 .*data\.val_size"),
    ],
)
def test_what_cannot_be_done(overrides: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        make_trainer(*overrides)
    assert isinstance(caught.value.__cause__, LorachainsError)
