"""How soon a command begins: it imports what it needs, when it needs it."""

import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lorachains.cli import quick_imports
from tests.cli.conftest import Train

PROGRAM = """
import runpy, sys
sys.argv = ["train", *{arguments}]
try:
    runpy.run_module("lorachains.train", run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, None, 1), stop
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("arguments", [["method=cola", "--cfg", "job"], ["method=cola", "knots=none", "oops=1"]])
def test_a_config_is_composed_without_importing_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments=arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("oops" in done.stderr) == ("oops=1" in arguments)


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
    assert not list((tmp_path / "runs").glob("*/metrics.json"))


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


@pytest.mark.parametrize("command", ["report", "human"])
def test_what_reads_finished_runs_needs_no_torch(command: str) -> None:
    said = f"import sys, lorachains.{command}.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True)
