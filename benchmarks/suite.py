"""All figures that one GPU can find, one after the other, within a budget of time; the same command goes on later.

    python benchmarks/suite.py run model=FILE.gguf output=DIR root=DATA minutes=9
    python benchmarks/suite.py run model=FILE.gguf output=DIR figures=moa,serving minutes=9

Each figure is a command of its own, in a process of its own, and what it prints is `output/FIGURE.json`; a figure whose
file is there is not found again. When the time is over, the one under way is ended: figures of parts (`*.parts.json`)
lose the part under way, others begin anew the next time. What a command says beside its figures is in `FIGURE.log`.
Prints JSON: what became of each figure.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import run
from measuring import Figures

from lorachains.errors import LorachainsError

FIGURES = {
    "step": "speed.py step rows=8 seq=64 best=true",
    "side_by_side": "speed.py side_by_side rows=8 seq=64 runs=1,5,24,25,50 theirs=true",
    "mixed": "speed.py mixed rows=64 seq=64 adapters=1,2,4,8,16,32",
    "linearity": "linearity.py linearity side_by_side={output}/side_by_side.json mixed={output}/mixed.json "
    "output={output}/linearity",
    "serving": "serving.py serving new=32",
    "moa": "mixtures.py moa new=32 output={output}/moa.parts.json",
    "attention": "own_kernels.py attention",
    "lora": "own_kernels.py lora",
    "activated": "activated.py latency tokens=64,256,1024",
    "one_pass": "chains.py one_pass",
    "add": "chains.py add",
    "graphs": "bases.py graphs rows=8 seq=64 output={output}/graphs.parts.json",
    "first_step": "commands.py first_step",
    "step_opt-1.3b": "speed.py step model=opt-1.3b rows=8 seq=256 random=true",
    "step_llama2-7b": "speed.py step model=llama2-7b rows=4 seq=512 random=true",
    "knot_llama2-7b": "speed.py knot model=llama2-7b rows=4 seq=512 random=true",
    "memory_opt-1.3b": "knot_memory.py memory model=opt-1.3b random=true",
    "memory_llama2-7b": "knot_memory.py memory model=llama2-7b rows=4 seq=512 random=true",
    "grid": "commands.py grid root={root} output={output}/grid.parts.json",
}
"""The command of each figure, in the order in which they are found: those that take long come last."""
LEAST = 20
"""Seconds without which none is begun: Python and the model take as long."""


def commands(name: str, output: Path, root: str | None, figures: Sequence[str]) -> dict[str, list[str]]:
    """The commands of the figures; without a root, of those that need no data.

    Raises:
        LorachainsError: there is no such figure, or one that was asked for needs a root.
    """
    if unknown := [figure for figure in figures if figure not in FIGURES]:
        raise LorachainsError(f"figures has {unknown[0]!r}: choose among {', '.join(FIGURES)}")
    if root is None and any("{root}" in FIGURES[figure] for figure in figures):
        raise LorachainsError("figures has one that needs the data's folder: give root=DIR")
    found = {}
    for figure in figures or [f for f, command in FIGURES.items() if root or "{root}" not in command]:
        script, *given = FIGURES[figure].format(output=output, root=root).split()
        model = [] if any(setting.startswith("model=") for setting in given) else [f"model={name}"]
        found[figure] = [sys.executable, str(Path(__file__).parent / script), *given, *model]
    return found


def find(name: str, output: str, minutes: float = 9, root: str | None = None, figures: Sequence[str] = ()) -> Figures:
    """What became of each figure: "kept" from before, "found", "cut", "left" for the next time, or why it failed.

    Args:
        output: a folder.
        root: of `superglue/`, for the grid; `None` leaves it out.
        figures: all if none are named.
    """
    folder, end = Path(output), time.monotonic() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    became: Figures = {}
    for figure, command in commands(name, folder, root, figures).items():
        file, left = folder / f"{figure}.json", end - time.monotonic()
        if file.is_file():
            became[figure] = "kept"
        elif left < LEAST:
            became[figure] = "left"
        else:
            became[figure] = _find(command, file, left)
        print(f"{figure}: {became[figure]}", file=sys.stderr, flush=True)
    return became


def _find(command: list[str], file: Path, seconds: float) -> str:
    """Runs a command for so long at most, and keeps what it prints."""
    log = file.with_suffix(".log")
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True)
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()
            return "cut"
    if process.returncode:
        last = next(iter(log.read_text().strip().splitlines()[-1:]), "nothing said")
        return f"failed with {process.returncode}: {last}"
    try:
        json.loads(printed)
    except json.JSONDecodeError:
        return f"failed: it printed no JSON, but {printed[:30]!r}"
    file.write_text(printed)
    return "found"


if __name__ == "__main__":
    run({"run": find})
