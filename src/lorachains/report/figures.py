"""The figures of a report, a panel each, so that they stay readable on a phone."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorachains.report.cells import Cell
from lorachains.report.curves import read_curve
from lorachains.report.published import Published, same_label
from lorachains.report.statistics import spread
from lorachains.report.tables import scale, unit

INK = "#010203"
"""The colour of text and axes: no other has it, so that a page can put its own in its place."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lorachains", "svg.fonttype": "none", "font.size": 10, "axes.grid": True, "grid.alpha": 0.25,
    "legend.framealpha": 0.0, "legend.fontsize": 9, "legend.labelcolor": INK,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}color": INK for part in ("edge", "label")},
}  # fmt: skip
STYLES = ("-", "--", ":", "-.")


def draw_all(
    cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], published: Sequence[Published], x: str | None
) -> dict[str, tuple[str, Figure]]:
    """All figures for which there are results, by name (letters, digits, hyphens), each with its title.

    Args:
        x: the setting along which the results of a method are drawn; none if `None`.
    """
    kinds: dict[str, tuple[str, Callable[[Axes, Sequence[Cell]], None]]] = {
        "scores": ("test results", partial(_scores, published=published)),
        **({"along": (f"test results by {x}", partial(_along, x=x))} if x else {}),
        "by-validation": ("what validation chose from", _candidates),
        "validation": ("validation during training", partial(_training, split="val")),
        "training": ("training loss", partial(_training, split="train")),
    }
    figures: dict[str, tuple[str, Figure]] = {}
    for kind, (title, draw) in kinds.items():
        for i, column in enumerate(columns):
            own = sorted((c for c in cells if c.column == column and c.runs), key=lambda c: rows.index(c.row))
            if figure := _panel(f"{column}: {title}", draw, own):
                figures[f"{kind}-{i + 1}-{_plain(column)}"] = f"{column}: {title}", figure
    return figures


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as "svg" or "png"; the same bytes for the same figure. An SVG has no background."""
    file = BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=kind, dpi=200, transparent=kind == "svg", metadata=metadata)
    return file.getvalue()


def _panel(title: str, draw: Callable[[Axes, Sequence[Cell]], None], cells: Sequence[Cell]) -> Figure | None:
    """A figure of one panel; `None` if nothing was drawn."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.6), layout="constrained")
        axis = figure.subplots()
        draw(axis, cells)
        if not axis.has_data():
            return None
        axis.set_title(title, fontsize=10, wrap=True)
        handles, names = axis.get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside lower center", ncols=2 if len(names) > 2 else 1)
        return figure


def _scores(axis: Axes, cells: Sequence[Cell], published: Sequence[Published]) -> None:
    """Mean and spread of each row, each seed as a dot, the paper's value as a diamond."""
    theirs = {(same_label(p.row), same_label(p.column), p.unit): p.value for p in published if p.value is not None}
    printed: dict[int, float] = {}
    for i, cell in enumerate(cells):
        values = [value * scale(cell.metric) for value in cell.results("test").values()]
        axis.errorbar(i, fmean(values), spread(values), fmt="_", color=f"C{i % 10}", markersize=28, capsize=8)
        axis.scatter([i] * len(values), values, color=f"C{i % 10}", s=14, alpha=0.7)
        key = same_label(cell.row), same_label(cell.column), unit(cell.metric)
        if key in theirs:
            printed[i] = theirs[key]
    if printed:
        style: dict[str, Any] = {"marker": "D", "facecolor": "none", "edgecolor": INK}
        axis.scatter(list(printed), list(printed.values()), label="the paper's", **style)
    if cells:
        axis.set_xlim(-0.5, len(cells) - 0.5)
        axis.set_xticks(range(len(cells)), [_wrapped(cell.row) for cell in cells], rotation=20 if len(cells) > 3 else 0)
        axis.set_ylabel(f"test {cells[0].metric} {unit(cells[0].metric)}")


def _candidates(axis: Axes, cells: Sequence[Cell]) -> None:
    """The validation score of each candidate, by the one number in which they differ; the chosen one with a ring."""
    for i, cell in enumerate(cells):
        scores = {_number(name): c.score for name, c in cell.candidates.items()}
        points = sorted((x, y * scale(cell.metric)) for x, y in scores.items() if x is not None and y is not None)
        if len(points) < 2:
            continue
        axis.plot(*zip(*points, strict=True), "o" + STYLES[i % 4], color=f"C{i % 10}", label=cell.row)
        for x, y in points:
            if x == _number(cell.chosen or ""):
                axis.scatter(x, y, s=110, facecolor="none", edgecolor=INK)
        axis.set(xscale="log" if points[0][0] > 0 else "linear", xlabel=(cell.chosen or "").partition("=")[0])
        axis.set_ylabel("mean validation result")


def _training(axis: Axes, cells: Sequence[Cell], split: str) -> None:
    """The mean over seeds of what the chosen runs logged, with their spread."""
    for i, cell in enumerate(cells):
        name = "loss" if split == "train" else cell.metric
        curves = [read_curve(run.path, f"{split}/{run.part}{name}") for run in cell.runs.values()]
        by_step: dict[int, list[float]] = defaultdict(list)
        for curve in curves:
            for step, value in curve.items():
                by_step[step].append(value * scale(name))
        steps = [step for step, values in sorted(by_step.items()) if len(values) == len(curves)]
        if steps:
            _band(axis, steps, [by_step[step] for step in steps], i, cell.row, "" if len(steps) > 30 else "o")
            axis.set(xlabel="optimizer steps", ylabel=f"{split} {name} {unit(name)}")


def _along(axis: Axes, cells: Sequence[Cell], x: str) -> None:
    """Mean and spread over the values of a setting, a line for what else tells rows apart (COLA Figures 2, 3)."""
    lines: dict[str, dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        run = next(iter(cell.runs.values()))
        if run.value(x) is not None:
            others = [str(run.value(key)) for key in cell.keys if key != x and run.value(key) is not None]
            lines[" ".join(others) if x in cell.keys else cell.row][str(run.value(x))] = cell
    values = sorted(
        {value for line in lines.values() for value in line}, key=lambda v: (_number(v) is None, _number(v) or 0.0, v)
    )
    for i, (label, line) in enumerate(sorted(lines.items())):
        places = [place for place, value in enumerate(values) if value in line]
        own = [line[values[place]] for place in places]
        results = [[v * scale(cell.metric) for v in cell.results("test").values()] for cell in own]
        _band(axis, places, results, i, label, "o")
        axis.set(xlabel=x, ylabel=f"test {own[0].metric} {unit(own[0].metric)}")
    axis.set_xticks(range(len(values)), values)


def _band(axis: Axes, xs: Sequence[float], values: Sequence[Sequence[float]], i: int, label: str, marker: str) -> None:
    means, spreads = [fmean(v) for v in values], [spread(v) or 0.0 for v in values]
    axis.plot(xs, means, marker + STYLES[i % 4], color=f"C{i % 10}", label=label, markersize=4)
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axis.fill_between(xs, low, high, color=f"C{i % 10}", alpha=0.15, linewidth=0)


def _number(text: str) -> float | None:
    """The number in "key=number", or the text as a number; `None` if it is neither."""
    if text.count("=") > 1:
        return None
    try:
        return float(text.rpartition("=")[2])
    except ValueError:
        return None


def _plain(label: str) -> str:
    """A label for the name of a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()


def _wrapped(label: str, width: int = 14) -> str:
    """A label over several lines, broken at its spaces."""
    lines = [""]
    for word in label.split(" "):
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
    return "\n".join(filter(None, lines))
