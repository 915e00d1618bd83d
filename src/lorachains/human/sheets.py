"""Blind sheets: the systems' responses to the same prompts in random order, and a key that says whose they are.

The paper lets five annotators rate 200 prompts of the test set as excellent, pass or fail. All annotators get the same
prompts by default: without that their agreement can't be told.
"""

import csv
import io
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorachains.answers import Answer
from lorachains.errors import LorachainsError
from lorachains.human.form import form
from lorachains.run_folder import write_whole

log = logging.getLogger(__name__)

RATINGS = ("fail", "pass", "excellent")
"""From the worst to the best."""
COLUMNS = ("item", "prompt", "response", "rating")


@dataclass(frozen=True)
class Item:
    """One response on one annotator's sheet.

    Attributes:
        name: what stands on the sheet; it says nothing.
        annotator: from 1.
    """

    name: str
    annotator: int
    system: str
    answer: Answer


def make_sheets(
    systems: Mapping[str, Sequence[Answer]], annotators: int, prompts: int, seed: int, same_prompts: bool = True
) -> list[Item]:
    """All items, sheet by sheet. The systems' responses to a prompt follow one another, in an order of their own.

    Args:
        prompts: for each annotator, of those that all systems have answered.
        same_prompts: whether all annotators get the same ones; each in an order of their own.

    Raises:
        LorachainsError: a number is below 1, or there are fewer prompts.
    """
    for name, value in (("annotators", annotators), ("prompts", prompts)):
        if type(value) is not int or value < 1:
            raise LorachainsError(f"{name} is {value!r}: give a whole number of at least 1")
    if not systems:
        raise LorachainsError("systems is empty: give at least one, as systems={a:FILE,b:FILE}")
    by_prompt = {system: _by_prompt(system, answers) for system, answers in systems.items()}
    first, *others = by_prompt.values()
    common = [prompt for prompt in first if all(prompt in other for other in others)]
    if len(common) < prompts:
        raise LorachainsError(
            f"prompts is {prompts}, but only {len(common)} prompts are answered by all of {', '.join(systems)}: give a "
            "smaller number, or predictions on the same test set"
        )
    draw = random.Random(seed)
    names = iter(draw.sample(range(16**8), annotators * prompts * len(systems)))
    chosen = draw.sample(common, prompts)
    items = []
    for annotator in range(1, annotators + 1):
        mine = draw.sample(chosen if same_prompts else common, prompts)
        for prompt in mine:
            for system in draw.sample(list(systems), len(systems)):
                items.append(Item(f"{next(names):08x}", annotator, system, by_prompt[system][prompt]))
    return items


def _by_prompt(system: str, answers: Sequence[Answer]) -> dict[tuple[str, str], Answer]:
    """The first answer to each prompt of a task."""
    found: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        found.setdefault((answer.task, answer.prompt), answer)
    if repeated := len(answers) - len(found):
        log.warning("%s: rows whose prompt came before are left out: %d", system, repeated)
    return found


def write_sheets(folder: Path, items: Sequence[Item]) -> None:
    """Writes `sheets/annotator-N.csv` and `.html`, which hold the same, and `key.json`, which no annotator may see.

    Raises:
        LorachainsError: there is a key already, without which the sheets that it belongs to are worth nothing.
    """
    key = folder / "key.json"
    if key.exists():
        raise LorachainsError(f"{key} belongs to sheets that were made before: give another output")
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    for annotator in sorted({item.annotator for item in items}):
        mine = [item for item in items if item.annotator == annotator]
        name = f"annotator-{annotator}"
        write_whole(folder / "sheets" / f"{name}.csv", _csv(mine))
        rows = [(item.name, item.answer.prompt, item.answer.prediction) for item in mine]
        write_whole(folder / "sheets" / f"{name}.html", form(name, rows))
    owners = {item.name: _owner(item) for item in items}
    write_whole(key, json.dumps({"items": owners}, indent=1, ensure_ascii=False) + "\n")


def _owner(item: Item) -> dict[str, str | int]:
    answer = item.answer
    return {"annotator": item.annotator, "system": item.system, "task": answer.task, "prompt": answer.prompt}


def _csv(items: Sequence[Item]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in items:
        writer.writerow([item.name, _harmless(item.answer.prompt), _harmless(item.answer.prediction), ""])
    return "\ufeff" + out.getvalue()  # the mark by which spreadsheets know UTF-8


def _harmless(text: str) -> str:
    """Text that a spreadsheet takes for no formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
