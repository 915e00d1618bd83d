"""Rows of the official files or of the hub. A fault is named by its place: file, line, field, what was expected."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lorachains.errors import LorachainsError


@dataclass(frozen=True)
class Row:
    """One row's fields by name, and the place it was read from. A dot in a field's name goes one level down."""

    values: Mapping[str, Any]
    source: str

    def text(self, field: str) -> str:
        """The text in `field`. Raises `LorachainsError` where it is missing or no text."""
        value = self._get(field, "text")
        return value if _is_text(value) else self._refuse(field, value, "text")

    def texts(self, field: str) -> list[str]:
        """The texts of the list in `field`. Raises `LorachainsError` where it is missing, empty or no list of texts."""
        expected = "a list of texts, at least one"
        values = self._get(field, expected)
        if not isinstance(values, list) or not values or not all(map(_is_text, values)):
            self._refuse(field, values, expected)
        return values

    def index(self, field: str, length: int) -> int:
        """The place in `field`, from 0. Raises `LorachainsError` where it is missing or not below `length`."""
        expected = f"a whole number from 0 to {length - 1}"
        value = self._get(field, expected)
        return value if type(value) is int and 0 <= value < length else self._refuse(field, value, expected)

    def row(self, field: str) -> "Row":
        """The object in `field`, as a row. Raises `LorachainsError` where it isn't there."""
        return self._inner(field, self._get(field, "an object"))

    def rows(self, field: str) -> Iterator["Row"]:
        """The objects of the list in `field`, each as a row. Raises `LorachainsError` where it isn't there."""
        values = self._get(field, "a list of objects")
        if not isinstance(values, list):
            self._refuse(field, values, "a list of objects")
        for index, value in enumerate(values):
            yield self._inner(f"{field}[{index}]", value)

    def label(self, field: str, answers: Mapping[Any, str]) -> str:
        """The answer that `answers` gives for the label in `field`. Raises `LorachainsError` for any other label.

        Types count: 1 is no `true`, and "1" is no 1.
        """
        expected = f"one of {', '.join(map(_show, answers))}"
        value = self._get(field, expected)
        for label, answer in answers.items():
            if type(value) is type(label) and value == label:
                return answer
        return self._refuse(field, value, expected)

    def _inner(self, field: str, value: Any) -> "Row":
        if not isinstance(value, Mapping):
            self._refuse(field, value, "an object")
        return Row(value, f"{self.source}/{field}")

    def _get(self, field: str, expected: str) -> Any:
        value: Any = self.values
        for key in field.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise LorachainsError(
                    f"{self.source}: field '{field}' is missing, expected {expected}: add it or delete the row"
                )
            value = value[key]
        return value

    def _refuse(self, field: str, value: Any, expected: str) -> NoReturn:
        raise LorachainsError(
            f"{self.source}: field '{field}' is {_show(value)}, expected {expected}: correct or delete the row"
        )


def _is_text(value: Any) -> bool:
    """Whether it is one that can be written: JSON can hold half a character (`"\\ud83d"`), which no tokenizer reads."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: Any) -> str:
    """As it stands in the file, but on one short line."""
    return json.dumps(value) if isinstance(value, bool | None) else reprlib.repr(value)


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a JSON Lines file (`.jsonl`) or of a tab-separated file with a header (`.tsv`), in file order.

    Raises `LorachainsError` with file and line where a line isn't UTF-8, a JSON object, or as wide as the header.
    """
    return _read_tsv(path) if path.suffix == ".tsv" else _read_jsonl(path)


def read_document(path: Path) -> Row:
    """The object that a JSON file is, as a row. Raises `LorachainsError` where it is none."""
    try:
        values = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LorachainsError(f"{path}: not JSON ({error}): fetch the file again") from error
    if not isinstance(values, dict):
        raise LorachainsError(f"{path}: {reprlib.repr(values)} is no JSON object: fetch the file again")
    return Row(values, str(path))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            source = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise LorachainsError(f"{source}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
            if text:
                yield source, text


def _read_jsonl(path: Path) -> Iterator[Row]:
    for source, text in _lines(path):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LorachainsError(
                f"{source}: not JSON ({error.msg} at column {error.colno}): correct or delete the row"
            ) from error
        if not isinstance(values, dict):
            raise LorachainsError(f"{source}: {reprlib.repr(values)} is no JSON object: correct or delete the row")
        yield Row(values, source)


def _read_tsv(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    _, header = next(lines, ("", ""))
    names = header.split("\t")
    for source, text in lines:
        cells = text.split("\t")
        if len(cells) != len(names):
            raise LorachainsError(
                f"{source}: {len(cells)} tab-separated fields, expected {len(names)} ({', '.join(names)}): "
                "correct or delete the row"
            )
        yield Row(dict(zip(names, cells, strict=True)), source)
