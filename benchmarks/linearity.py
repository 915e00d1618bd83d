"""Whether cost is linear: a grid's step time by its number of runs, a mixed batch's by its number of adapters.

    python benchmarks/linearity.py linearity side_by_side=A.json mixed=B.json output=results/speed/linearity

Reads what `speed.py side_by_side` and `speed.py mixed` have printed, writes `output.png` and `output.svg`, and prints
JSON: of each line a + b · n fitted to the points (least squares) the constant, the slope, and how far the worst point
lies from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from command_line import run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measuring import Figures

from lorachains.errors import LorachainsError
from lorachains.report.figures import STYLE, to_bytes

PANELS = {
    "side_by_side": ("a step of a grid", "runs side by side"),
    "mixed": ("a step of one batch of texts", "adapters that share it"),
}


def linearity(name: str, side_by_side: str, mixed: str, output: str) -> Figures:
    """Draws both, and fits a line to each.

    Args:
        name: the model's, for the title.
        side_by_side, mixed: the files of what was measured.
        output: the pictures' path without its ending.

    Raises:
        LorachainsError: a file has fewer than three points.
    """
    files = {"side_by_side": Path(side_by_side), "mixed": Path(mixed)}
    found: Figures = {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.8, 3.6), layout="constrained")
        for axis, (kind, file) in zip(figure.subplots(1, 2), files.items(), strict=True):
            told = json.loads(file.read_text())
            points = _points(told, file)
            found[kind] = _fit(points) | {"file": file.name, "device": told["device"]}
            _draw(axis, points, found[kind], *PANELS[kind])
        figure.suptitle(f"{name}, {found['mixed']['device']}", fontsize=10)
    for kind in ("png", "svg"):
        Path(f"{output}.{kind}").write_bytes(to_bytes(figure, kind))
    return found


def _points(told: Mapping[str, Any], file: Path) -> dict[int, float]:
    """Seconds of a step by number."""
    measured = {int(key): of for key, of in told.items() if key.isdigit()}
    points = {number: of["step_seconds"] for number, of in sorted(measured.items()) if "step_seconds" in of}
    if len(points) < 3:
        raise LorachainsError(f"{file} has {len(points)} points: measure three or more for a line, as runs=1,5,25,50")
    return points


def _fit(points: Mapping[int, float]) -> Figures:
    numbers, seconds = np.array(list(points)), np.array(list(points.values()))
    slope, constant = np.polyfit(numbers, seconds, 1)
    apart = np.abs(constant + slope * numbers - seconds) / seconds
    return {
        "step_seconds": points, "constant_seconds": float(constant), "seconds_for_each_more": float(slope),
        "furthest_from_the_line": float(apart.max()),
    }  # fmt: skip


def _draw(axis: Axes, points: Mapping[int, float], fit: Figures, title: str, what: str) -> None:
    """The points in milliseconds, and the line."""
    axis.plot(list(points), [1000 * second for second in points.values()], "o", color="C0")
    constant, slope = 1000 * fit["constant_seconds"], 1000 * fit["seconds_for_each_more"]
    ends = [0, max(points)]
    label = f"{constant:.1f} ms + {slope:.2f} ms · n"
    axis.plot(ends, [constant + slope * end for end in ends], "--", color="C1", label=label)
    axis.set(xlim=(0, None), ylim=(0, 1100 * max(points.values())), xlabel=what, ylabel="ms")
    axis.set_title(title, fontsize=10)
    axis.legend(loc="lower right")


if __name__ == "__main__":
    run({"linearity": linearity})
