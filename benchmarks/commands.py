"""Whole commands against what one would write with HF Trainer + PEFT: a grid of runs, and the way to the first step.

    python benchmarks/commands.py grid model=smollm2-135m root=DIR output=grid.json
    python benchmarks/commands.py their_run model=smollm2-135m root=DIR
    python benchmarks/commands.py one_run model=smollm2-135m root=DIR rows=64 epochs=2
    python benchmarks/commands.py first_step model=smollm2-135m

`grid` is COLA's 5 × 5 grid on RTE (App. A.1), its evaluations included, of which theirs, `their_run`, is made once and
counted 25 times: whole commands on both sides, from the start of Python. `one_run` is a single run of it on fewer rows:
ours a whole command, while theirs begins when all is imported and the model is loaded. Each prints JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import hf_peft
from command_line import Parts, run
from hydra.utils import instantiate
from measuring import DEVICE, Figures, chosen, load, settings


def rte(root: str, rows: int) -> list[str]:
    """The overrides that choose RTE, with so many training and test rows, and half as many to validate."""
    sizes = [f"data.train_size={rows}", f"data.val_size={rows // 2}", f"data.test_size={rows}"]
    return ["data=superglue", "data.task=rte", f"data.root={root}", *sizes]


def grid(
    name: str, root: str, output: str, best: bool = False, skip: Sequence[str] = (), rows: int = 1000, epochs: int = 5
) -> Figures:
    """The paper's 5 x 5 grid on RTE: our command, and 25 times one run of theirs, which is made once.

    Args:
        output: a file that has each part as soon as it is found; the same command goes on from there.
        skip: of `theirs`, `theirs_best`, `ours` (which compiles what it needs) and `ours_again`.
    """
    parts = Parts(Path(output), {"model": name, "root": root, "rows": rows, "epochs": epochs}, skip)
    for part, how in ({"theirs": "default"} | ({"theirs_best": "best"} if best else {})).items():
        parts.find(part, partial(_command_of_theirs, name, root, rows, epochs, how))
    for part in ("ours", "ours_again"):
        parts.find(part, partial(_our_grid, name, rte(root, rows), epochs))
    theirs, ours = ({k: of for k, of in parts.found.items() if k.startswith(side)} for side in ("theirs", "ours"))
    pairs = {f"{s}, {k}": (of, o) for s, of in theirs.items() for k, o in ours.items()}
    return {
        "theirs, one run": theirs,
        "ours, 25 runs": ours,
        "25 x theirs / ours": {
            pair: 25 * of["command_seconds"] / o["command_seconds"] for pair, (of, o) in pairs.items()
        },
        "25 x theirs / ours, by run/seconds": {
            pair: 25 * of["seconds"] / o["run/seconds"] for pair, (of, o) in pairs.items()
        },
    }


def _command_of_theirs(name: str, root: str, rows: int, epochs: int, how: str) -> Figures:
    given = [f"model={name}", f"root={root}", f"rows={rows}", f"epochs={epochs}", f"how={how}"]
    start = time.perf_counter()
    said = subprocess.run(
        [sys.executable, __file__, "their_run", *given], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(said.stdout) | {"command_seconds": time.perf_counter() - start}


def their_run(name: str, root: str, rows: int = 1000, epochs: int = 5, how: str = "default") -> Figures:
    """One of the 25 runs, by HF Trainer + PEFT; its `seconds` begin when the model is loaded.

    Args:
        how: their settings, see `hf_peft`.
    """
    cfg = settings(name, *rte(root, rows))
    base = load(cfg)
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    return hf_peft.run(base, data, settings=how, lr=5e-4, seed=0, device=DEVICE, epochs=epochs)


def _our_grid(name: str, rows: Sequence[str], epochs: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lorachains.train", "-m", "method=cola", *chosen(name), *rows,
            f"trainer.max_epochs={epochs}", "optim.lr=1e-3,8e-4,5e-4,1e-4,5e-5", "seed=0,1,2,3,4",
            "hydra/launcher=replicas", f"hydra.sweep.dir={folder}",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        metrics = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*/metrics.json"))]
    assert len(metrics) == 25
    kept = ("train/seconds", "run/seconds", "run/peak_memory_bytes", "train/tokens_per_second")
    scores = [m["test/accuracy"] for m in metrics]
    return {"command_seconds": seconds, "test_accuracy": scores} | {k: metrics[0][k] for k in kept}


def one_run(name: str, root: str, rows: int = 64, epochs: int = 2, repeats: int = 3) -> Figures:
    """A run of COLA on real texts of RTE, of many lengths, with its evaluations: our command, and theirs."""
    given = rte(root, rows)
    cfg = settings(name, *given)
    base = load(cfg)
    found: Figures = {"ours": [], "theirs": [], "our steps": [], "their steps": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            data = instantiate(cfg.data, tokenizer=base.tokenizer)
            theirs = hf_peft.run(
                base, data, settings="default", lr=5e-4, seed=0, device=DEVICE, epochs=epochs, warmup=2
            )
            out = Path(folder, str(i))
            command = [
                sys.executable, "-m", "lorachains.train", "method=cola", *chosen(name), *given,
                f"trainer.max_epochs={epochs}", f"hydra.run.dir={out}",
            ]  # fmt: skip
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=sys.stderr)
            found["ours"].append(time.perf_counter() - start)
            found["theirs"].append(theirs["seconds"])
            found["our steps"].append(json.loads((out / "metrics.json").read_text())["train/seconds"])
            found["their steps"].append(theirs["training"]["seconds"])
    pairs = {"theirs / ours": ("theirs", "ours"), "theirs / ours, training": ("their steps", "our steps")}
    return found | {key: median(found[a]) / median(found[b]) for key, (a, b) in pairs.items()}


def first_step(name: str, repeats: int = 3) -> Figures:
    """A whole process that makes one optimizer step on a cached model: ours, and HF Trainer with PEFT."""
    small = ["data.train_size=8", "data.val_size=1", "data.test_size=1", "trainer.max_epochs=1", "overwrite=true"]
    theirs = (
        "from functools import partial; import hf_peft, measuring\n"
        f"base = measuring.load(measuring.settings({name!r})); rows = measuring.texts(base, 8, 64)\n"
        "train = partial(hf_peft.train, settings='default', device=measuring.DEVICE, warmup=0)\n"
        "train(base, rows, batch_size=8, lr=5e-4, seed=0, steps=1)"
    )
    commands = {
        "ours": [sys.executable, "-m", "lorachains.train", *chosen(name), *small, "hydra.run.dir=."],
        "theirs": [sys.executable, "-c", theirs],
    }
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    found: Figures = {side: [] for side in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for side, command in commands.items():
                start = time.perf_counter()
                subprocess.run(
                    command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": path},
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                found[side].append(time.perf_counter() - start)
    return {side: {"seconds": median(of), "all": of} for side, of in found.items()}


if __name__ == "__main__":
    run({"grid": grid, "their_run": their_run, "one_run": one_run, "first_step": first_step})
