"""A run's folder says by which code and command it was made, once for each time that it was begun or gone on with."""

import json
from pathlib import Path

import lorachains
from tests.cli.conftest import Train


def lines(file: Path) -> list[dict[str, str | None]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_beginning_is_a_line(train: Train, tmp_path: Path) -> None:
    assert train("hydra.run.dir=run", "seed=3").code == 0
    [line] = lines(tmp_path / "run" / "code.jsonl")
    assert line["lorachains"] == lorachains.__version__
    assert "seed=3" in str(line["command"])
    assert train("hydra.run.dir=run", "seed=3", "resume=true").code == 0  # it is finished: nothing is begun
    assert len(lines(tmp_path / "run" / "code.jsonl")) == 1
    (tmp_path / "run" / "metrics.json").unlink()
    assert train("hydra.run.dir=run", "seed=3", "resume=true").code == 0
    assert len(lines(tmp_path / "run" / "code.jsonl")) == 2
    assert train("hydra.run.dir=run", "seed=4", "overwrite=true").code == 0
    [line] = lines(tmp_path / "run" / "code.jsonl")
    assert "seed=4" in str(line["command"])  # of this run, not of the first that the process made
