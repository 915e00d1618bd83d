"""Rows of a user's own file: JSON Lines, a JSON list, comma- or tab-separated, or parquet."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lorachains.data.rows import Row, read_file
from lorachains.errors import LorachainsError

csv.field_size_limit(sys.maxsize)  # it would refuse texts of more than 131,072 characters

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def files_in(path: Path, key: str) -> list[Path]:
    """The file itself, or a folder's files of `SUFFIXES`, by name.

    Raises:
        LorachainsError: there are none. `key` is the setting to correct.
    """
    found = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())
    if not (known := [file for file in found if file.suffix in SUFFIXES]):
        kinds = ", ".join(SUFFIXES)
        fault = f"is no {kinds} file, nor a folder of them" if path.exists() else f"is not there ({kinds}, or a folder)"
        raise LorachainsError(f"{path} {fault}: correct {key}")
    return known


def read_rows(path: Path) -> Iterator[Row]:
    """The file's rows in its order; empty cells of a table are "".

    A row's source is "FILE:LINE", where it begins, or "FILE#ROW" (from 0) in a JSON list or parquet.

    Raises:
        LorachainsError: names the place of what can't be read.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers.get(path.suffix, read_file)(path)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LorachainsError(f"{path}: not JSON ({error}): correct the file, or name it .jsonl") from error
    if not isinstance(values, list):
        raise LorachainsError(f"{path}: a {type(values).__name__}, expected a list of objects: correct the file")
    return _objects(path, values)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # half a second to import
    import pyarrow.parquet

    try:
        return _objects(path, pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise LorachainsError(f"{path}: not parquet ({error}): fetch the file again") from error


def _objects(path: Path, values: Iterable[Any]) -> Iterator[Row]:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise LorachainsError(f"{path}#{index}: {value!r:.60} is no object: correct or delete the row")
        yield Row(value, f"{path}#{index}")


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names, line = next(reader, []), reader.line_num + 1
            if len(set(names)) < len(names):
                raise LorachainsError(f"{path}:1: two columns have one name ({', '.join(names)}): rename one of them")
            for cells in reader:
                if len(cells) != len(names) and cells:
                    raise LorachainsError(
                        f"{path}:{line}: {len(cells)} fields, expected {len(names)} ({', '.join(names)}): "
                        "correct or delete the row"
                    )
                if cells:
                    yield Row(dict(zip(names, cells, strict=True)), f"{path}:{line}")
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise LorachainsError(f"{path}: {error.reason} at byte {error.start}: save the file as UTF-8") from error
    except csv.Error as error:
        raise LorachainsError(f"{path}:{line}: not CSV ({error}): correct or delete the row") from error
