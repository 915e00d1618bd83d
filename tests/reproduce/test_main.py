"""A table from nothing to its runs; again, when nothing is missing; and after kill -9."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lorachains.cli import settings_of
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.reproduce import passes
from lorachains.reproduce.__main__ import check, reproduce, show
from lorachains.reproduce.passes import Launch
from lorachains.reproduce.reports import report
from lorachains.reproduce.runs import Composer, Table
from lorachains.reproduce.sweeps import load, names, read
from lorachains.reproduce.worker import GRACE
from tests.jobs import metrics, predictions

SWEEP = """
paper: cola
title: of nothing
minutes: {smoke: 1}
select: {over: [optim.lr], by: metric}
against: {COLA: LoRA}
model: [model=tiny]
data: [data.task=syllogism, data.train_size=8, data.val_size=2, data.test_size=2, data.batch_size=4]
each: ["seed=0,1", trainer.max_epochs=2]
rows: {LoRA: [method=lora], COLA: [method=cola, knots.links=2]}
columns: {syllogism: []}
sizes: {smoke: {}}
"""
MIXTURES = """
paper: moa
title: of nothing
minutes: {smoke: 1}
select: {over: [optim.lr], by: loss}
against: {MoA: Single}
model: [model=tiny]
data: ["data.tasks=[syllogism,acre]", data.train_size=8, data.val_size=2, data.test_size=2, data.batch_size=4]
each: ["seed=0,1", "optim.lr=1e-3,1e-2", trainer.max_epochs=1]
rows: {syllogism: [], all: {name: ""}}
columns:
  Single: {overrides: [method=single_lora], metric: "test/{row}/loss"}
  MoA: {overrides: [method=moa], metric: "test/{row}/loss", from: {method.experts: [method=single_lora]}}
sizes: {smoke: {}}
"""
TABLES = "cola-table3,chain-of-lora-table2,moa-table4"
COMMAND = [sys.executable, "-m", "lorachains.reproduce", f"table=[{TABLES}]", "size=smoke"]


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    """A small one, whose runs are in `tmp_path / "runs"`."""
    (tmp_path / "cola-table1.yaml").write_text(SWEEP)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield Composer(tmp_path / "runs").table(read(tmp_path / "cola-table1.yaml", "smoke"))


def test_what_is_finished_is_not_made_again(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    assert reproduce([table], Launch(root), "command")
    told = json.loads((root / "cola-table1.json").read_text())
    assert [cell["row"] for cell in told["cells"]] == ["LoRA", "COLA"]
    shown = report(table)
    assert {cell.row for cell in shown.cells} == {"LoRA", "COLA"}
    assert all(cell.complete and len(cell.runs) == 2 for cell in shown.cells)
    folders = [name for cell in told["cells"] for name in cell["runs"]]
    assert len(set(folders)) == 4
    assert {path.parent.name for path in root.glob("*/metrics.json")} == set(folders)
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*")}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert reproduce([table], Launch(root), "command")
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*")} == before


def test_what_is_damaged_is_made_again_and_what_cannot_be_shown_is_told(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other tables' reports are written all the same; a cell of which nothing is there says so."""
    root = tmp_path / "runs"
    lora = table.cells[0]
    for run in lora.runs:
        run.folder.begin(settings_of(compose("train", list(run.overrides))), resume=False, overwrite=False)
        run.folder.write_metrics({"test/accuracy": 0.5, "val/accuracy": 0.5, "val/loss": 1.0, "run/seconds": 1.0})
    shown = report(table)
    assert [(cell.row, len(cell.runs), cell.asked, cell.complete) for cell in shown.cells] == [
        ("LoRA", 2, 2, True),
        ("COLA", 0, 2, False),
    ]
    assert show(table, root)
    assert "— (0 of 2)" in (root / "cola-table1" / "report.md").read_text()
    damaged = lora.runs[0].folder.metrics
    damaged.write_text(damaged.read_text()[:20])
    monkeypatch.setattr(passes, "ATTEMPTS", 0)
    assert not reproduce([table], Launch(root), "command")
    assert not lora.runs[0].finished
    assert damaged.with_suffix(".json.damaged").is_file()
    lora.runs[1].folder.metrics.unlink()
    assert not show(table, root)
    assert f"error: cola-table1: {root}" in capsys.readouterr().err


def test_two_at_a_time(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"

    def second(*_: object) -> Generator[None, None, int]:
        yield
        with pytest.raises(LorachainsError, match="another process is making runs in"):
            reproduce([table], Launch(root), "command")
        return 1

    monkeypatch.setattr(passes, "_multirun", second)
    assert not reproduce([table], Launch(root), "command")


def test_a_job_that_cannot_be_composed_is_named(tmp_path: Path) -> None:
    (tmp_path / "cola-table1.yaml").write_text(SWEEP.replace("knots.links=2", "knots.lnks=2"))
    sweep = read(tmp_path / "cola-table1.yaml", "smoke")
    with (
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
        pytest.raises(LorachainsError, match=r"cola-table1, COLA, syllogism: .*knots\.lnks"),
    ):
        Composer(tmp_path).table(sweep)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("table=null", "table is None: give a name"),
        ("table=5", "table is 5: give a name"),
        ("table=[]", r"table is \[\]: give a name"),
        ("root=null", "root is None: give a folder"),
        ("overrides=devices", "overrides is 'devices': give a list"),
        ("overrides=null", "overrides is None: give a list"),
        ("launcher=none", "launcher is 'none': give one of Hydra's"),
        ("workers=0", "workers is 0: give a whole number above 0"),
        ("group_size=two", "group_size is 'two': give a whole number above 0"),
    ],
)
def test_settings_that_make_no_sense(override: str, says: str) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check(compose("reproduce", ["table=cola-table1"]))
        with pytest.raises(LorachainsError, match=says):
            check(compose("reproduce", ["table=cola-table1", override]))


def test_runs_begin_with_those_of_the_same_seed_and_rate(tmp_path: Path) -> None:
    """They are made after them, also where the table is made of them alone, and named after them."""
    (tmp_path / "moa-table2.yaml").write_text(MIXTURES)
    sweep = read(tmp_path / "moa-table2.yaml", "smoke")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        table = Composer(tmp_path / "runs").table(sweep)
    order = [run.name for run in table.runs]
    mixtures = [run for cell in table.cells for run in cell.runs if cell.column.label == "MoA"]
    assert len(order) == 8
    assert {run.name for run in mixtures} | {run.name for run in table.cells[0].runs} == set(order)
    for run in mixtures:
        [first] = run.before
        assert order.index(first.name) < order.index(run.name)
        assert f"method.experts='{first.folder.path}'" in run.overrides
        for key in ("seed=", "optim.lr="):
            own, theirs = ([text for text in of.overrides if text.startswith(key)] for of in (run, first))
            assert own == theirs


def test_a_run_for_each_to_begin_with(tmp_path: Path) -> None:
    (tmp_path / "moa-table2.yaml").write_text(MIXTURES.replace("[method=single_lora]}}", "[seed=0]}}"))
    sweep = read(tmp_path / "moa-table2.yaml", "smoke")
    with pytest.raises(LorachainsError, match=r"MoA: 4 runs, of which each begins with one of 2 \(method.experts\)"):
        sweep.jobs(sweep.rows[0], sweep.columns[1])


def run_to_end(folder: Path) -> None:
    """In `folder / "runs"`; relative, since a run is named after the folder of the one that it begins with, too."""
    folder.mkdir(exist_ok=True)
    subprocess.run([*COMMAND, "root=runs"], cwd=folder, check=True, capture_output=True)


def run_and_kill(folder: Path, seconds: float) -> None:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*COMMAND, "root=runs"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + GRACE + 1
    while workers(folder) and time.monotonic() < end:  # they end by themselves
        time.sleep(0.1)


@pytest.mark.slow
def test_every_table_and_figure_at_smoke_size(tmp_path: Path) -> None:
    """What CI runs: each report has its sweep's rows and columns, with all runs."""
    subprocess.run([*COMMAND[:3], "table=all", "size=smoke", f"root={tmp_path}"], check=True, capture_output=True)
    for name in names():
        sweep = load(name, "smoke")
        with (tmp_path / name / "cells.csv").open(encoding="utf-8", newline="") as file:
            cells = {(row["row"], row["column"]) for row in csv.DictReader(file)}
        assert cells == {(row.label, column.label) for row in sweep.rows for column in sweep.columns}
        assert (tmp_path / name / "report.html").is_file()


@pytest.mark.slow
def test_killed_five_times_at_random_moments(tmp_path: Path) -> None:
    """kill -9 of what the user has started: the worker ends with it, and the next command goes on."""
    start = time.monotonic()
    run_to_end(tmp_path / "whole")
    whole, rng = time.monotonic() - start, random.Random(0)
    for _ in range(5):
        run_and_kill(tmp_path / "killed", rng.uniform(0.2, 0.9) * whole)
        assert not workers(tmp_path / "killed")
    run_to_end(tmp_path / "killed")
    folders = [file.parent for file in (tmp_path / "whole" / "runs").glob("*/metrics.json")]
    assert len(folders) == 12 + 2 + 6
    for folder in folders:
        other = tmp_path / "killed" / "runs" / folder.name
        assert metrics(other) == metrics(folder)
        assert predictions(other) == predictions(folder)
    for name in TABLES.split(","):
        one, other = (tmp_path / way / "runs" / name / "cells.csv" for way in ("whole", "killed"))
        assert one.read_text() == other.read_text()


def workers(folder: Path) -> list[int]:
    """The processes that work in the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if file.readlink() == folder:
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found
