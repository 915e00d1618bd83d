"""By what a run was made: code version, command and machine, a line each time that it is begun or gone on with."""

import json
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch


def record(file: Path) -> None:
    """Appends a JSON object to `file`: `time`, `lorachains`, `commit`, `torch`, `python`, `device`, `command`."""
    command = " ".join(["python", *sys.argv])
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **_here(), "command": command}) + "\n")


@cache
def commit() -> str | None:
    """`git describe` of the checkout that the code runs from ("-dirty": with changes); `None` outside of one."""
    top = Path(__file__).resolve().parents[2]
    if not (top / ".git").exists():  # an installed package may lie inside another repository
        return None
    command = ["git", "-C", str(top), "describe", "--always", "--long", "--tags", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a repository without a commit
        return None


@cache
def _here() -> dict[str, str | None]:
    cuda = torch.cuda.is_available()
    return {
        "lorachains": version("lorachains"),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
    }
