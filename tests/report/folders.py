"""Run folders as `lorachains.train` leaves them, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

SECTION = {
    "lora": "lorachains.methods.Lora",
    "cola": "lorachains.methods.Cola",
    "zero_shot": "lorachains.methods.ZeroShot",
}


def make_run(
    folder: Path, method: str = "lora", seed: int = 0, test: float | None = 0.5, *, task: str = "rte", lr: float = 1e-3,
    val: float = 0.5, val_loss: float = 0.7, last: float | None = None, metric: str = "accuracy",
    also: dict[str, Any] | None = None, more: Sequence[str] = (),
) -> Path:  # fmt: skip
    """One run.

    Args:
        test: the test metric at the best epoch; `None` leaves the run unfinished.
        also: further metrics.
        more: further settings, as `adapter.r=4`.
    """
    folder.mkdir(parents=True)
    optim = {"_target_": "lorachains.optim.Optim", "lr": lr, "optimizer": {"_target_": "torch.optim.AdamW"}}
    settings = {
        "model": {"_target_": "lorachains.models.load", "name": "org/Some-Model"},
        "data": {"tasks": None, "task": task, "seed": 0, "order_seed": seed},
        "adapter": {"r": 8}, "optim": optim, "seed": seed,
        "method": {"_target_": SECTION[method], "seed": seed, "optim": optim},
    }  # fmt: skip
    config = OmegaConf.merge(settings, OmegaConf.from_dotlist(list(more)))
    OmegaConf.save(config, folder / "config.yaml")
    if test is not None:
        metrics = {
            f"test/{metric}": test, "test/loss": 0.6, f"test_last/{metric}": test if last is None else last,
            "test_last/loss": 0.6, f"val/{metric}": val, "val/loss": val_loss, "run/seconds": 10.0, "train/links": 1,
        } | (also or {})  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def make_log(folder: Path, version: int, rows: Sequence[dict[str, float]]) -> None:
    """A CSV log as Lightning writes it: all columns in each line, empty where nothing was logged."""
    names = sorted({name for row in rows for name in row})
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    (folder / "csv" / f"version_{version}").mkdir(parents=True)
    (folder / "csv" / f"version_{version}" / "metrics.csv").write_text("\n".join(lines) + "\n")


def make_grid(root: Path) -> Path:
    """Two methods on three tasks, five seeds and three learning rates, COLA better by about two points; with logs."""
    for m, method in enumerate(("lora", "cola")):
        for t, task in enumerate(("rte", "cb", "wsc")):
            for rate, lr in enumerate((1e-3, 5e-4, 1e-4)):
                for seed in range(5):
                    noise = ((seed * 7 + t * 5 + m * 3 + rate) % 11 - 5) / 500
                    score = 0.6 + 0.05 * t + 0.02 * m - 0.03 * abs(rate - 1) + noise
                    run = make_run(
                        root / f"{method}-{task}-{lr}-{seed}", method, seed, round(score, 3), task=task, lr=lr,
                        val=round(score - noise / 2, 3), val_loss=round(1 - score, 3), last=round(score - 0.01, 3),
                    )  # fmt: skip
                    curve = [
                        {"step": s, "val/accuracy": score * s / 50, "val/loss": 1 - score * s / 60}
                        for s in (10, 30, 50)
                    ]
                    make_log(run, 0, [*curve, *({"step": s, "train/loss": 2 / (1 + s)} for s in range(0, 50, 5))])
    return root
