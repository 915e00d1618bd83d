"""Filled sheets back to systems: rates, their intervals, and how far the annotators agree."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorachains.errors import LorachainsError
from lorachains.human.agreement import krippendorff_alpha, wilson
from lorachains.human.sheets import RATINGS


@dataclass(frozen=True)
class Verdict:
    """What one annotator says of one system's response. `rating` is `None` where it was left open."""

    annotator: int
    system: str
    task: str
    prompt: str
    rating: str | None


def read_sheets(sheets: Sequence[Path], key: Path) -> list[Verdict]:
    """The verdicts on all items of the annotators whose sheets are given; items that a sheet leaves out are open.

    Raises:
        LorachainsError: a file can't be read, or a row is damaged, foreign or doubled: with file and line.
    """
    if not sheets:
        raise LorachainsError("sheets is empty: give the filled sheets, as sheets=[FILE,FILE]")
    owners = _read_key(key)
    ratings: dict[str, str | None] = {}
    places: dict[str, str] = {}
    for sheet in sheets:
        rows = list(_rows(sheet))
        if not rows:
            raise LorachainsError(f"{sheet}:1: there is no row below the columns: give a filled sheet")
        for place, item, rating in rows:
            if item not in owners:
                raise LorachainsError(f"{place}: item {item!r} is not in {key}: give the key of this sheet")
            if item in places:
                raise LorachainsError(f"{place}: item {item!r} was rated before, in {places[item]}: delete one of both")
            if rating and rating not in RATINGS:
                raise LorachainsError(f"{place}: the rating is {rating!r}: give {', '.join(RATINGS)}, or nothing")
            ratings[item], places[item] = rating or None, place
    given = {owners[item]["annotator"] for item in ratings}
    return [Verdict(**o, rating=ratings.get(item)) for item, o in owners.items() if o["annotator"] in given]


def _read_key(key: Path) -> dict[str, dict[str, Any]]:
    fields = {"annotator", "system", "task", "prompt"}
    try:
        owners: dict[str, dict[str, Any]] = json.loads(key.read_text(encoding="utf-8"))["items"]
        whole = all(owner.keys() == fields for owner in owners.values())
    except OSError as error:
        raise LorachainsError(f"{key} can't be read ({error.strerror}): give the key.json of the sheets") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LorachainsError(f"{key} is damaged or no key: give the key.json of the sheets") from error
    if not whole:
        raise LorachainsError(f"{key} is damaged or no key: give the key.json of the sheets")
    return owners


def _rows(sheet: Path) -> Iterator[tuple[str, str, str]]:
    """The place, item and rating of each row."""
    lines = _lines(sheet)
    columns, delimiter = _header(sheet, lines[0] if lines else "")
    csv.field_size_limit(2**31 - 1)  # a long response is no damage
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    next(reader)
    place = f"{sheet}:2"
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise LorachainsError(
                        f"{place}: {len(cells)} cells, expected {len(columns)} ({', '.join(columns)}): correct the row"
                    )
                values = dict(zip(columns, cells, strict=True))
                yield place, values["item"].strip(), values["rating"].strip().casefold()
            place = f"{sheet}:{reader.line_num + 1}"
    except csv.Error as error:
        raise LorachainsError(f"{place}: no CSV from here on ({error}): correct the row") from error


def _lines(sheet: Path) -> list[str]:
    """The lines with their ends, which may belong to a cell."""
    try:
        data = sheet.read_bytes()
    except OSError as error:
        raise LorachainsError(f"{sheet} can't be read ({error.strerror}): give a filled sheet") from error
    try:
        return list(io.StringIO(data.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LorachainsError(f"{sheet}:{line}: not UTF-8: save the file as CSV in UTF-8") from error


def _header(sheet: Path, line: str) -> tuple[list[str], str]:
    """The columns, and what stands between them: spreadsheets of some countries write no comma."""
    for delimiter in (",", ";", "\t"):
        columns = [column.strip() for column in line.replace('"', "").split(delimiter)]
        if {"item", "rating"} <= set(columns):
            return columns, delimiter
    raise LorachainsError(f"{sheet}:1: there are no columns item and rating: give a sheet as it was made, and saved")


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Each system's rates of excellent, pass and fail with 95% intervals, and the annotators' agreement.

    A rate is the share of all its ratings. Ratings of one prompt aren't independent, so the interval (Wilson's) counts
    each prompt once, however many annotators rated it. Agreement is Krippendorff's α over all responses.
    """
    rated = [verdict for verdict in verdicts if verdict.rating is not None]
    summary: dict[str, Any] = {
        "human/annotators": len({verdict.annotator for verdict in verdicts}),
        "human/ratings": len(rated),
        "human/open": len(verdicts) - len(rated),
    }
    for system in sorted({verdict.system for verdict in verdicts}):
        mine = [verdict for verdict in rated if verdict.system == system]
        prompts = len({(verdict.task, verdict.prompt) for verdict in mine})
        summary[f"{system}/prompts"] = prompts
        for rating in reversed(RATINGS):
            share = sum(verdict.rating == rating for verdict in mine) / len(mine) if mine else None
            low, high = (None, None) if share is None else wilson(share, prompts)
            summary |= {f"{system}/{rating}": share, f"{system}/{rating}_low": low, f"{system}/{rating}_high": high}
    return summary | _agreement(rated)


def _agreement(rated: Sequence[Verdict]) -> dict[str, Any]:
    units: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for verdict in rated:
        units[verdict.system, verdict.task, verdict.prompt].append(RATINGS.index(verdict.rating or ""))
    several = [unit for unit in units.values() if len(unit) > 1]
    return {
        "agreement/responses": len(several),
        "agreement/alpha_ordinal": krippendorff_alpha(several, len(RATINGS), "ordinal"),
        "agreement/alpha_nominal": krippendorff_alpha(several, len(RATINGS), "nominal"),
    }
