"""A run's folder says by which code and command it was made, once for each time that it was begun or gone on with."""

import json
import subprocess
from pathlib import Path

import pytest

import lorachains
from lorachains import provenance
from tests.cli.conftest import Train
from tests.cli.conftest import train as train


@pytest.fixture(autouse=True)
def _uncached() -> None:
    provenance.commit.cache_clear()
    provenance._here.cache_clear()


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
    assert len(lines(tmp_path / "run" / "code.jsonl")) == 1


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "src" / "lorachains" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.setattr(provenance, "__file__", str(module))
    provenance.commit.cache_clear()
    assert provenance.commit() is None  # no checkout

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    provenance.commit.cache_clear()
    assert provenance.commit() == git("rev-parse", "--short=12", "HEAD").strip()
    module.write_text("changed")
    provenance.commit.cache_clear()
    assert str(provenance.commit()).endswith("-dirty")
