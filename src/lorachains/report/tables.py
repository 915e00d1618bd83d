"""The tables of a report, as texts in rows and columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lorachains.report.cells import Cell
from lorachains.report.comparing import Comparison, verdict
from lorachains.report.published import Published, same_label
from lorachains.report.reading import Run, is_share
from lorachains.report.statistics import spread

NOTHING = "—"
UNITS = {
    "loss": "nats", "perplexity": "perplexity", "bleu": "points (0-100)", "rougeL": "points (0-100)",
    "parameters": "parameters", "tokens": "tokens", "rows": "rows", "right": "answers", "total": "answers",
    "fallbacks": "answers", "steps": "optimizer steps", "seconds": "s", "bytes": "bytes",
}  # fmt: skip
MEANS = "mean ± standard deviation (ddof = 1) over seeds, and how many seeds"
SHORT = "*: fewer finished runs than the grid asks for, here or among the settings to choose from; nothing is filled in"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        name: for files and links: letters, digits and hyphens.
        notes: a line each, below it.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def scale(metric: str) -> float:
    """By what a metric is multiplied to be shown: shares are told in per cent."""
    return 100.0 if is_share(metric) else 1.0


def unit(metric: str) -> str:
    """The unit in which a metric is shown."""
    name = metric.rsplit("/", 1)[-1]
    return UNITS.get(name) or ("%" if is_share(metric) else other_unit(metric))


def labels(
    cells: Sequence[Cell], published: Sequence[Published], baselines: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Rows and columns in the paper's order, if it has them, else baselines first."""
    rows, columns = ([same_label(getattr(p, kind)) for p in published] for kind in ("row", "column"))

    def place(label: str, order: list[str]) -> int:
        return order.index(same_label(label)) if same_label(label) in order else len(order)

    own = dict.fromkeys(cell.row for cell in cells), dict.fromkeys(cell.column for cell in cells)
    by_row = sorted(own[0], key=lambda row: (place(row, rows), row not in baselines))
    return by_row, sorted(own[1], key=lambda column: place(column, columns))


def scores(cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], split: str) -> Table:
    """Rows × columns of the chosen settings' test metric, at the best epoch ("test") or the last ("test_last")."""
    metrics = {column: [cell.metric for cell in cells if cell.column == column] for column in columns}
    header = ["", *(_head(column, own) for column, own in metrics.items())]

    def text(cell: Cell) -> str:
        return _mean_of(cell, [value * scale(cell.metric) for value in cell.results(split).values()])

    when = {"test": "best epoch", "test_last": "last epoch"}[split]
    title = f"Test results at the {when}"
    return Table(split.replace("_", "-"), title, header, _pivot(cells, rows, columns, text), _notes(cells))


def others(cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], key: str) -> Table:
    """Rows × columns of any number in `metrics.json`, of the same runs."""

    def text(cell: Cell) -> str:
        return _mean_of(
            cell, [v for run in cell.runs.values() if isinstance(v := (run.metrics or {}).get(key), int | float)]
        )

    title = " ".join(filter(None, (key, other_unit(key))))
    return Table(
        key.replace("/", "-").replace("_", "-"),
        title,
        ["", *columns],
        _pivot(cells, rows, columns, text),
        _notes(cells),
    )


def other_unit(key: str) -> str:
    """The unit of a number that is no metric of a task, as its name tells it."""
    name = key.rsplit("/", 1)[-1]
    return "FLOPs" if name.startswith("flops") else UNITS.get(name.rsplit("_", 1)[-1], "")


def choices(cells: Sequence[Cell], by: str) -> Table:
    """What validation chose, and from what."""
    rows = []
    for cell in cells:
        told = [
            f"{name or 'the only ones'}: {_score(cell, name, by)} ({len(c.runs)})"
            for name, c in cell.candidates.items()
        ]
        rows.append([cell.row, cell.column, cell.chosen if cell.chosen else NOTHING, "; ".join(told)])
    header = ["", "column", "chosen", f"mean validation {by} (finished runs)"]
    return Table("chosen", "Settings chosen by validation", header, rows)


def comparisons(found: Sequence[Comparison], published: Sequence[Published], split: str) -> Table:
    """Each row against its baseline."""
    header = [
        "",
        "column",
        "against",
        "seeds",
        "difference",
        "relative",
        "95% interval",
        "d_z",
        "p (t)",
        "p (Wilcoxon)",
    ]
    theirs = any(verdict(c, published) for c in found)
    rows = []
    for c in found:
        factor = scale(c.cell.metric)
        against = c.baseline.row if c.baseline.column == c.cell.column else c.baseline.column
        row = [c.cell.row, c.cell.column, against, *_differences(c, factor)]
        rows.append([*row, verdict(c, published) or NOTHING] if theirs else row)
    remarks = dict.fromkeys(
        f"{c.cell.row}, {c.cell.column}: {c.paired.note}" for c in found if c.paired and c.paired.note
    )
    when = {"test": "best epoch", "test_last": "last epoch"}[split]
    notes = [
        "paired over seeds that both have; relative: in parts of the baseline's mean; interval: bootstrap percentiles "
        "of the mean difference; d_z: mean difference in standard deviations (ddof = 1) of the differences; p: "
        "two-sided, corrected by Holm for the columns of a row (or rows of a column) that is compared with another; "
        "less is better of losses and perplexities",
        *remarks,
    ]
    name = f"against-baseline{'-last' if split == 'test_last' else ''}"
    return Table(name, f"Against the baseline, {when}", [*header, "as in the paper"] if theirs else header, rows, notes)


def beside_paper(cells: Sequence[Cell], published: Sequence[Published]) -> Table:
    """The paper's values and ours of the same unit, and how they differ. Neither is filled in where it is missing."""
    ours = {(same_label(c.row), same_label(c.column), unit(c.metric)): c for c in cells if c.runs}
    run = {key[:2] for key in ours}
    rows, seen = [], set()
    for value in published:
        key = same_label(value.row), same_label(value.column), value.unit
        seen.add(key)
        texts = _beside(ours[key], value.value) if key in ours else (NOTHING if key[:2] in run else "not run", NOTHING)
        rows.append([value.row, value.column, value.unit, _told(value), *texts])
    for key, cell in ours.items():
        if key not in seen:
            rows.append([cell.row, cell.column, key[2], NOTHING, *_beside(cell, None)])
    notes = [MEANS, *(f"{v.row}, {v.column}: {v.status}: {v.note}" for v in published if v.note)]
    return Table("paper", "Paper and ours", ["", "column", "unit", "paper", "ours", "ours − paper"], rows, notes)


def missing(unfinished: Sequence[Run], left_out: Mapping[Path, str]) -> Table:
    """The runs that are in no table."""
    rows = [[str(run.path), "not finished"] for run in unfinished]
    rows += [[str(path), f"left out: {reason}"] for path, reason in left_out.items()]
    return Table("missing", "Runs that are not counted", ["folder", "why"], rows)


def number(value: float, form: str = ".2f") -> str:
    """With a true minus sign, and none before a zero."""
    text = f"{value:{form}}"
    return f"−{text[1:]}" if text.startswith("-") and float(text) else text.removeprefix("-")


def form(value: float) -> str:
    """How a number of its size is written: by powers of ten if it is large or tiny."""
    return ".2f" if 0.01 <= abs(value) < 1e5 or value == 0 else ".2e"


def mean_and_spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation`, or the one value."""
    mean, deviation = fmean(values), spread(values)
    return number(mean, form(mean)) + ("" if deviation is None else f" ± {number(deviation, form(mean))}")


def _mean_of(cell: Cell, values: Sequence[float]) -> str:
    many = f"{len(values)}" if len(values) >= cell.asked else f"{len(values)} of {cell.asked}"
    mark = "" if cell.complete else "*"
    return f"{mean_and_spread(values) if values else NOTHING} ({many}){mark}"


def _pivot(
    cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], text: Callable[[Cell], str]
) -> list[list[str]]:
    texts = {(cell.row, cell.column): text(cell) for cell in cells}
    return [[row, *(texts.get((row, column), NOTHING) for column in columns)] for row in rows]


def _head(column: str, metrics: Sequence[str]) -> str:
    """A column's label with the metric and the unit, as far as its cells have them in common."""
    names, units = {metric.rsplit("/", 1)[-1] for metric in metrics}, {unit(metric) for metric in metrics}
    one = next(iter(names)) if len(names) == 1 else ""
    told = [*filter(None, [one]), *(u for u in units if len(units) == 1 and not one.endswith(u))]
    return ", ".join(filter(None, [column, " ".join(told)]))


def _notes(cells: Sequence[Cell]) -> list[str]:
    waiting = sum(c.unfinished for cell in cells for c in cell.candidates.values())
    more = [f"begun and not finished: {waiting}"] if waiting else []
    return [MEANS, *([] if all(cell.complete for cell in cells) else [SHORT]), *more]


def _score(cell: Cell, name: str, by: str) -> str:
    score = cell.candidates[name].score
    return NOTHING if score is None else number(score * (scale(cell.metric) if by == "metric" else 1), ".3f")


def _differences(c: Comparison, factor: float) -> list[str]:
    if c.paired is None:
        return ["0", *[NOTHING] * 6]
    p = c.paired
    low_high = p.interval and f"{number(p.interval[0] * factor)} to {number(p.interval[1] * factor)}"
    relative = None if p.gain is None else f"{number(100 * p.gain)}%"
    effect = None if p.effect is None else number(p.effect)
    values = [p.note.partition(" for ")[0] if value is None else probability(value) for value in (c.t, c.wilcoxon)]
    texts = [relative, low_high, effect, *values]
    return [str(p.n), number(p.difference * factor), *(text or NOTHING for text in texts)]


def probability(p: float) -> str:
    """As it is told: to four digits."""
    return "< 0.0001" if p < 0.00005 else f"{p:.4f}"


def _told(value: Published) -> str:
    if value.value is None:
        return "not printed"
    return number(value.value, form(value.value)) + ("" if value.status == "printed" else f" ({value.status})")


def _beside(cell: Cell, theirs: float | None) -> tuple[str, str]:
    values = [value * scale(cell.metric) for value in cell.results("test").values()]
    return _mean_of(cell, values), NOTHING if theirs is None else number(fmean(values) - theirs)
