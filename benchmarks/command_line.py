"""The command line of the benchmarks: `FIGURE key=value …`; and figures of parts, each kept as soon as it is found."""

import contextlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from measuring import DEVICE, Figures

from lorachains.cli import told
from lorachains.errors import LorachainsError

_LISTS = {"runs": int, "adapters": int, "experts": int, "tokens": int, "skip": str, "figures": str}


def arguments(given: Sequence[str]) -> Figures:
    """What `key=value` pairs say; `model` is the argument `name`."""
    found: Figures = {"name": "smollm2-135m"}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LorachainsError(f"{pair!r} is no setting: give key=value")
        if key in _LISTS:
            found[key] = _items(key, value)
        else:
            found["name" if key == "model" else key] = _plain(value)
    return found


def _items(key: str, value: str) -> list[Any]:
    items = value.split(",")
    if not all(items) or (_LISTS[key] is int and not all(item.isdecimal() and int(item) for item in items)):
        what = "whole numbers above 0" if _LISTS[key] is int else "names"
        raise LorachainsError(f"{key} is {value!r}: give {what} with commas between, as {key}=A,B")
    return [_LISTS[key](item) for item in items]


def fitting(function: Callable[..., Figures], given: Figures) -> Figures:
    """What was given, as the function takes it: of what others take lists of, maybe one.

    Raises:
        LorachainsError: for what it doesn't take, lacks, or takes in another form.
    """
    takes = inspect.signature(function).parameters
    said = ["model" if name == "name" else name for name in takes]
    if unknown := [key for key in given if key not in takes]:
        raise LorachainsError(f"{unknown[0]} is no setting here: give some of {', '.join(said)}")
    if lacking := [key for key, of in takes.items() if key not in given and of.default is of.empty]:
        raise LorachainsError(f"{lacking[0]} is missing: give {lacking[0]}=…")
    return {key: _as(takes[key].annotation, key, value) for key, value in given.items()}


def _as(kind: object, key: str, value: Any) -> Any:
    if kind is int and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if kind is int and not (type(value) is int and value > 0):
        raise LorachainsError(f"{key} is {value!r}: give a whole number above 0")
    if kind is float and not (type(value) in (int, float) and value > 0):
        raise LorachainsError(f"{key} is {value!r}: give a number above 0")
    if kind is bool and type(value) is not bool:
        raise LorachainsError(f"{key} is {value!r}: give true or false")
    return value


def _plain(value: str) -> bool | int | float | str:
    if value in ("true", "false"):
        return value == "true"
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError:
        return value


def device() -> str:
    """On what is measured."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"


def run(functions: dict[str, Callable[..., Figures]]) -> None:
    """Prints what one of the functions has found; of wrong input one line."""
    try:
        figure, *given = sys.argv[1:] or [""]
        if figure not in functions:
            raise LorachainsError(f"the figure is {figure!r}: give one of {', '.join(functions)}, then key=value …")
        settings = fitting(functions[figure], arguments(given))
        head = {"command": " ".join(sys.argv[1:]), "device": device(), "torch": torch.__version__}
        with contextlib.redirect_stdout(sys.stderr):  # libraries print, too
            found = functions[figure](**settings)
        print(json.dumps(head | found, indent=2))
    except HydraException as error:  # there is no such model; also an OSError
        sys.exit(f"error: {str(error).splitlines()[0]}")
    except (LorachainsError, OSError) as error:
        if (cause := told(error)) is None:
            raise
        sys.exit(f"error: {cause}")


class Parts:
    """Parts of a figure, in a file that has each of them as soon as it is found.

    The same command goes on after what is in it, so that one which is cut loses the part under way and no other.

    Args:
        settings: of the command, as far as they change what is found. Of files and folders the name alone is kept.
        skip: parts to leave out.

    Raises:
        LorachainsError: the file is of other settings, or of another device.
    """

    def __init__(self, path: Path, settings: Figures, skip: Sequence[str] = ()):
        self.path, self.skip = path, skip
        named = {k: Path(v).name if isinstance(v, str) and Path(v).exists() else v for k, v in settings.items()}
        self._head = {"settings": named, "device": device(), "torch": torch.__version__}
        self.found: Figures = {}
        if path.is_file():
            kept = json.loads(path.read_text())
            if any(kept.get(key) != value for key, value in self._head.items()):
                raise LorachainsError(f"{path} holds figures of another command or device: give another output")
            self.found = kept["parts"]

    def find(self, part: str, measure: Callable[[], Any]) -> None:
        """Measures a part, unless it is there already or is to be left out."""
        if part in self.skip or part in self.found:
            return
        self.found[part] = measure()
        self.path.write_text(json.dumps(self._head | {"parts": self.found}, indent=2) + "\n")
        print(f"{part}: in {self.path}", file=sys.stderr)
