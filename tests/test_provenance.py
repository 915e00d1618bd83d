"""The commit of the code that runs."""

import subprocess
from pathlib import Path

import pytest

from lorachains import provenance


@pytest.fixture(autouse=True)
def _uncached() -> None:
    provenance.commit.cache_clear()
    provenance._here.cache_clear()


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
