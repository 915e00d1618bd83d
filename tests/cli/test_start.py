"""How soon a command begins: it imports what it needs, when it needs it."""

import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lorachains.cli import quick_imports
from tests.cli.conftest import SMALL, Train

PROGRAM = """
import runpy, sys
sys.argv = ["train", *{arguments}]
try:
    runpy.run_module("lorachains.train", run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, None, 1), stop
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["method=cola", "--cfg", "job"], "method:"),
        (["method=cola", "oops=1"], "Could not override 'oops'"),
        (["seed=x"], "seed is 'x': give a whole number"),
        (["-m", "hydra/launcher=replicas", "seed=0,1", "method=lora,oops"], "Could not find 'method/oops'"),
    ],
)
def test_a_config_is_composed_without_importing_torch(arguments: list[str], says: str, tmp_path: Path) -> None:
    program = PROGRAM.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout + done.stderr


def test_a_finished_run_needs_no_torch(train: Train, tmp_path: Path) -> None:
    assert train("hydra.run.dir=run").code == 0
    program = PROGRAM.format(arguments=[*SMALL, "hydra.run.dir=run", "resume=true"])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is finished: nothing to resume" in done.stdout


def test_what_is_imported_late_says_no_more_than_before(tmp_path: Path) -> None:
    """Lightning's import sets the level of its log."""
    given = [*SMALL, "hydra.run.dir=run", "hydra.verbose=[lorachains.jobs]"]
    command = [sys.executable, "-m", "lorachains.train", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for told in (done.stdout, done.stderr, (tmp_path / "run" / "train.log").read_text()):
        assert not any(chatter in told for chatter in ("GPU available", "Tip", "`Trainer.fit` stopped", "litlogger"))


def test_the_garbage_collector_rests_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen  # nothing was imported
    try:
        with suppress(ValueError), quick_imports():
            monkeypatch.setitem(sys.modules, "a module", sys)
            raise ValueError
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("launcher", ["replicas", "basic"])
def test_no_job_is_trained_where_one_cant_be_composed(launcher: str, train: Train, tmp_path: Path) -> None:
    """Hydra's sweeper composes all first, or else the launcher does."""
    done = train("-m", f"hydra/launcher={launcher}", "method=lora,oops")
    assert done.code == 1
    assert "Could not find 'method/oops'" in done.err
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]


def test_an_experiment_may_choose_its_sweeper(train: Train, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/sweeper: basic, override /hydra/launcher: replicas]\n"
    )
    done = train("experiment=mine", "--config-dir", str(tmp_path / "own"), "--cfg", "hydra")
    assert "core_plugins.basic_sweeper.BasicSweeper" in done.out
    assert "ReplicasLauncher" in done.out
    assert "ProductSweeper" in train("--cfg", "hydra").out


def test_the_jobs_of_a_grid_are_composed_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    composed = []
    load = ConfigLoaderImpl.load_sweep_config

    def counted(*args: object, **kwargs: object) -> object:
        composed.append(args)
        return load(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    assert train("-m", "hydra/launcher=replicas", "seed=0,1,2").code == 0
    assert len(composed) == 1  # the others are its copies, with numbers of their own


@pytest.mark.parametrize("command", ["report", "human", "reproduce"])
def test_what_reads_finished_runs_needs_no_torch(command: str) -> None:
    said = f"import sys, lorachains.{command}.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True)
