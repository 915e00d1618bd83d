"""A paper's values, to stand beside ours: a CSV file of one value a line.

Its columns are `table`, `row`, `column`, `value`, `unit`, `status` and `note`, and, if they are there, `paper` and
`spread`. The status is "printed", "derived" (from other printed values: the note says how), "missing" (no value) or
"suspect" (printed, but it can't be right: the note says why).
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorachains.errors import LorachainsError

FIELDS = ("table", "row", "column", "value", "unit", "status", "note")
STATUSES = ("printed", "derived", "missing", "suspect")


@dataclass(frozen=True)
class Published:
    """One value of a paper.

    Attributes:
        value: in `unit`; `None` exactly where the status is "missing".
        line: of the file.
    """

    paper: str
    table: str
    row: str
    column: str
    value: float | None
    unit: str
    status: str
    note: str
    line: int


def read_published(file: Path, table: str | None) -> list[Published]:
    """The values of one table, or of all if the file has but one.

    Raises:
        LorachainsError: names the file, the line, and what is wrong with it.
    """
    if not file.is_file():
        raise LorachainsError(f"published is {str(file)!r}, which is no file")
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if missing := [name for name in FIELDS if name not in (reader.fieldnames or [])]:
            raise LorachainsError(f"{file}:1: has no column {missing[0]}: {','.join(FIELDS)} are needed")
        values = [_value(row, f"{file}:{reader.line_num}", reader.line_num) for row in reader]
    tables = list(dict.fromkeys(value.table for value in values))
    if table not in tables and (table is not None or len(tables) != 1):
        raise LorachainsError(f"table is {table!r}: {file} has {', '.join(tables) or 'none'}")
    return _unique([value for value in values if table in (None, value.table)], file)


def same_label(label: str) -> str:
    """What makes two labels one: letters and numbers, in any case ("SST-2" is sst2)."""
    return re.sub(r"[\W_]", "", label).casefold()


def _value(row: dict[str, str | None], where: str, line: int) -> Published:
    texts = {name: (row.get(name) or "").strip() for name in ("paper", *FIELDS)}
    if texts["status"] not in STATUSES:
        raise LorachainsError(f"{where}: status is {texts['status']!r}: choose one of {', '.join(STATUSES)}")
    if (texts["status"] == "missing") != (texts["value"] == ""):
        raise LorachainsError(
            f"{where}: value is {texts['value']!r}, status {texts['status']}: only what is missing has no value"
        )
    try:
        value = float(texts.pop("value") or math.nan)
    except ValueError:
        raise LorachainsError(f"{where}: value is {row['value']!r}: give a number") from None
    return Published(value=None if math.isnan(value) else value, line=line, **texts)


def _unique(values: Sequence[Published], file: Path) -> list[Published]:
    seen: dict[tuple[str, str, str], int] = {}
    for value in values:
        key = same_label(value.row), same_label(value.column), value.unit
        if (first := seen.setdefault(key, value.line)) != value.line:
            raise LorachainsError(f"{file}:{value.line}: {value.row}, {value.column} is on line {first} too")
    return list(values)
