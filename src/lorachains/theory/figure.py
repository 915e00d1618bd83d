"""The figure of a study: average gaps beside their bounds above, COLA beside LoRA below."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5")


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the figure as SVG, the same bytes for the same results."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    titles = {"ball": "Algorithm 2, M over the ball (the paper's)", "start": "Algorithm 2, M = L(W₁)"}
    for axis, (kind, title) in zip(axes[0], titles.items(), strict=True):
        _gaps(axis, [row for row in results["frank_wolfe"] if row["M"] == kind])
        axis.set(title=title, xlabel="T", ylabel="average gap")
    for axis, key, name in zip(axes[1], ("losses", "gaps"), ("loss", "Frank–Wolfe gap"), strict=True):
        _curves(axis, results["chains"], key)
        axis.set(title="Algorithm 1 (one link is LoRA)", xlabel="SGD steps", ylabel=name)
    for axis in axes[:, 1]:
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1))  # the same as on the left
    with matplotlib.rc_context({"svg.hashsalt": "lorachains", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _gaps(axis: Axes, rows: list[dict[str, Any]]) -> None:
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    for colour, batch in zip(cycle(COLOURS), batches, strict=False):
        own = [row for row in rows if row["batch"] == batch]
        steps = [row["T"] for row in own]
        axis.plot(steps, [row["average_gap"] for row in own], "o-", color=colour, label=f"measured, b = {batch}")
        limit = [row["bound"] + row["average_slack"] for row in own]
        axis.plot(steps, limit, "--", color=colour, label=f"bound + measured ε, b = {batch}")
        prior = [row["bound"] + row["expected_slack"] for row in own]
        axis.plot(steps, prior, ":", color=colour, label=f"bound + Dσ/√b, b = {batch}")
    axis.plot(
        [row["T"] for row in rows if row["batch"] == batches[0]],
        [row["bound"] for row in rows if row["batch"] == batches[0]],
        color="grey", label="bound at ε = 0",
    )  # fmt: skip
    axis.set(xscale="log", yscale="log")


def _curves(axis: Axes, rows: list[dict[str, Any]], key: str) -> None:
    styles = dict(zip(dict.fromkeys(row["links"] for row in rows), cycle((":", "--", "-", "-.")), strict=False))
    colours = dict(zip(dict.fromkeys(row["rank"] for row in rows), cycle(COLOURS), strict=False))
    for row in rows:
        label = f"rank {row['rank']}, {row['links']} link{'s'[: row['links'] != 1]}"
        axis.plot(row["steps"], row[key], styles[row["links"]], color=colours[row["rank"]], label=label)
    axis.set_yscale("log")
