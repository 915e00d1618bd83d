"""One run on two devices against the same run on one: equal results, and steps a second.

    python benchmarks/two_devices.py                      # two GPUs (NCCL)
    python benchmarks/two_devices.py --accelerator cpu    # two processes (gloo)
    python benchmarks/two_devices.py model=opt-1.3b model.random_weights=true data.batch_size=32

First small runs in float32 (LoRA, and COLA in both modes, with ddp and fsdp2) whose adapters, metrics and predictions
must be equal to rounding (`pytest -m gpu tests/test_parallel.py` compares in float64); then the speed of one COLA run,
with the overrides given, for each strategy; `--output FILE` keeps each as soon as it is measured, and the same command
goes on from there. JSON on standard output. Exit code 1 if any result differs.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from command_line import Parts
from safetensors.torch import load_file

EXACT = ["model=tiny", "optim.lr=5e-3", "trainer.compile=false"]
DATA = ["data.task=syllogism", "data.batch_size=4", "data.train_size=30", "data.val_size=6", "data.test_size=6"]
METHODS = {
    "lora": ["method=lora", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.05"],
    "ledger": ["method=cola", "knots=at_steps", "knots.steps=[3,9]"],
    "merge": ["method=cola", "knots=at_steps", "knots.steps=[3,9]", "knots.mode=merge"],
}
SPEED = [
    "method=cola", "data.task=syllogism", "data.train_size=2400", "data.val_size=16", "data.test_size=16",
    "data.batch_size=16", "trainer.max_epochs=2", "knots.links=2",
]  # fmt: skip
TOLERANCE = 1e-3
"""Of float32: Adam makes whole steps of gradients that are nothing but rounding."""
TIMES = ("seconds", "per_second", "bytes")
ON = {"1 device": ["trainer.devices=1"], "ddp": ["trainer.devices=2"]}
ON["fsdp2"] = [*ON["ddp"], "trainer.strategy=fsdp2"]


def train(folder: Path, *overrides: str) -> Path:
    """Runs the command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "lorachains.train", *overrides, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def metrics(folder: Path) -> dict[str, Any]:
    """The run's."""
    return dict(json.loads((folder / "metrics.json").read_text()))


def distance(ours: Path, theirs: Path) -> float:
    """The largest relative difference of adapters (by norm), metrics that are no times, and scores of predictions.

    Infinite where an answer differs.
    """
    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (ours, theirs))
    found = [float((a[key] - b[key]).norm() / b[key].norm()) for key in b]
    mine, their = metrics(ours), metrics(theirs)
    found += [_relative(mine[key], their[key]) for key in their if not key.endswith(TIMES)]
    lines = [(folder / "predictions.jsonl").read_text().splitlines() for folder in (ours, theirs)]
    for mine, their in zip(*(map(json.loads, of) for of in lines), strict=True):
        found += [_relative(x, y) for x, y in zip(mine["candidates"], their["candidates"], strict=True)]
        found.append(0.0 if mine["prediction"] == their["prediction"] else float("inf"))
    return max(found)


def _relative(x: float, y: float) -> float:
    return 0.0 if x == y else abs(x - y) / max(abs(x), abs(y))


def check(root: Path, accelerator: str) -> dict[str, float]:
    """The distances of the small runs on two devices to those on one."""
    distances: dict[str, float] = {}
    for name, method in METHODS.items():
        overrides = [*EXACT, *DATA, *method, "trainer.max_epochs=2", f"trainer.accelerator={accelerator}"]
        folders = {on: train(root / name / on.replace(" ", "_"), *overrides, *devices) for on, devices in ON.items()}
        distances |= {f"{name}, {on}": distance(folders[on], folders["1 device"]) for on in ("ddp", "fsdp2")}
    return distances


def speed(root: Path, accelerator: str, overrides: list[str], output: Path) -> dict[str, dict[str, float]]:
    """What each way of training costs.

    Args:
        output: has each as soon as it is measured.
    """
    parts = Parts(output, {"accelerator": accelerator, "overrides": overrides})
    for on in ON:
        parts.find(on, partial(_speed_on, root, accelerator, overrides, on))
    return parts.found


def _speed_on(root: Path, accelerator: str, overrides: list[str], on: str) -> dict[str, float]:
    folder = root / "speed" / on.replace(" ", "_")
    got = metrics(train(folder, *SPEED, f"trainer.accelerator={accelerator}", *overrides, *ON[on]))
    return {
        "steps_per_second": got["train/optimizer_steps"] / got["train/seconds"],
        "tokens_per_second": got["train/tokens_per_second"],
        "test_loss": got["test_last/loss"],
        "peak_memory_bytes": got.get("run/peak_memory_bytes", 0),
    }


def main() -> None:
    """Prints what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--only", choices=("check", "speed"))
    parser.add_argument("--output", type=Path, help="a file that keeps each way's speed as soon as it is measured")
    parser.add_argument("overrides", nargs="*", help="of the run whose speed is measured")
    args = parser.parse_args()
    if args.accelerator == "gpu" and (found := torch.cuda.device_count()) < 2:
        parser.error(f"{found} GPUs are visible: two are needed, or --accelerator cpu")
    device = torch.cuda.get_device_name() if args.accelerator == "gpu" else "cpu"
    report: dict[str, Any] = {"device": device, "torch": torch.__version__}
    with TemporaryDirectory() as root:
        if args.only != "speed":
            report["distances"] = check(Path(root), args.accelerator)
        if args.only != "check":
            report["speed"] = speed(
                Path(root), args.accelerator, args.overrides, args.output or Path(root, "speed.json")
            )
    print(json.dumps(report, indent=2))
    if any(not value < TOLERANCE for value in report.get("distances", {}).values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
