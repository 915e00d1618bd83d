"""Chain-of-LoRA's n + 1 adapters trained in one pass against one after the other; a task put into a trained chain.

    python benchmarks/chains.py one_pass model=smollm2-135m tasks=23 batch_size=8
    python benchmarks/chains.py add model=smollm2-135m tasks=23

Rows are `reasoning_gym`'s, of texts of many lengths, or with `root=DIR` Super-NaturalInstructions'. Each prints JSON.

`one_pass`: all adapters see the same rows in the same batches either way, and each its own optimizer steps; they begin
with the same factors. Time is that of an epoch's training steps, data loading included: the median of all epochs but
the first, in which passes are compiled and recorded. Before it is told, the adapters' validation losses are compared.

`add`: whole runs within this process (training, evaluation after each epoch, tests), from a model that is loaded anew;
the experts' files are compared byte for byte. How generation mixes the adapters of a chain: `serving.py`.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import lightning as L
import torch
from command_line import run
from hydra.utils import instantiate
from measuring import DEVICE, Figures, check_same, load, make, settings, take_out

from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.jobs import Job, train_jobs
from lorachains.methods import Lora
from lorachains.run_folder import RunFolder

GENERATED = (
    "basic_arithmetic", "chain_sum", "lcm", "count_bits", "gcd", "products", "count_primes", "decimal_arithmetic",
    "decimal_chain_sum", "fraction_simplification", "leg_counting", "letter_counting", "number_filtering",
    "number_format", "number_sorting", "power_function", "simple_equations", "spell_backward", "syllogism",
    "time_intervals", "calendar_arithmetic", "bitwise_arithmetic", "family_relationships", "number_sequence",
)  # fmt: skip
"""Tasks of `reasoning_gym`, all with short texts."""
TOLD = ("test/selector/top1", "test/selector/top3", "test/oracle/perplexity", "test/routed/perplexity")


def chain(name: str, tasks: int, rows: int, root: str | None, *more: str, random: bool = False) -> Any:
    """The config of a chain of the first so many tasks.

    Args:
        rows: of each task for training; an eighth to validate, and to test.
        root: a folder with `superni/*.json`; `None` for generated rows.

    Raises:
        LorachainsError: there are fewer tasks.
    """
    there = GENERATED if root is None else sorted(path.stem for path in Path(root, "superni").glob("*.json"))
    if tasks > len(there):
        raise LorachainsError(f"tasks={tasks}, but there are {len(there)}: give fewer, or another root=DIR")
    data = ["data=reasoning_gym"] if root is None else ["data=superni", f"data.root={root}"]
    few = max(1, rows // 8)
    sizes = [f"data.train_size={rows}", f"data.val_size={few}", f"data.test_size={few}"]
    chosen = f"[{','.join(there[:tasks])}]"
    names = [f"data.tasks={chosen}", f"method.names={chosen}"]
    return settings(name, "method=chain_of_lora", *data, *sizes, *names, *more, random=random)


def one_pass(
    name: str, tasks: int = 23, rows: int = 160, epochs: int = 6, batch_size: int = 8, root: str | None = None,
    random: bool = False,
) -> Figures:  # fmt: skip
    """The seconds of an epoch of all adapters, in one pass and one after the other.

    Args:
        epochs: the first is warm-up.
        batch_size: rows of each expert in a step; of the selector so many for each expert.
    """
    cfg = chain(name, tasks, rows, root, f"data.batch_size={batch_size}", random=random)
    base = load(cfg)
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    together = make(cfg, base, 1)
    beginning = [together.snapshot(adapter) for adapter in range(tasks + 1)]
    [own] = together.reads(RunsDataModule([data])).runs
    found: Figures = {"one pass": _fit(together, cfg, own, epochs)}
    sizes = [stream.batches.batch_size for stream in own.streams(0, False)]
    take_out(together)
    alone = make(settings(name, "method=lora", random=random), base, 1)
    each = []
    for adapter, begins in enumerate(beginning):
        alone.restore([begins])
        each.append(_fit(alone, cfg, _of_one(own, adapter, sizes[adapter]), epochs))
    take_out(alone)
    mine, theirs = found["one pass"].pop("losses"), [loss for of in each for loss in of.pop("losses")]
    check_same(mine, theirs)
    apart = max(abs(a - b) / b for a, b in zip(mine, theirs, strict=True))
    found["one after the other"] = {key: sum(of[key] for of in each) for key in ("seconds", "tokens", "steps")}
    found["adapters"] = tasks + 1
    found["losses"] = {"one pass": fmean(mine), "one after the other": fmean(theirs), "furthest apart": apart}
    ratio = found["one after the other"]["seconds"] / found["one pass"]["seconds"]
    return found | {"one after the other / one pass": ratio}


def _of_one(run: TaskDataModule, adapter: int, batch_size: int) -> TaskDataModule:
    """The rows of one of a chain's adapters as those of a run of one task."""
    rows = {
        split: [replace(row, task=0) for row in run.rows(split) if row.task == adapter]
        for split in ("train", "val", "test")
    }
    return run.with_rows(rows, [run.tasks[adapter]], [batch_size])


class _Epochs(L.Callback):
    """The seconds of each epoch's training steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self._began = _now()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            self.seconds.append(_now() - self._began)


def _now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _fit(method: Lora, cfg: Any, data: TaskDataModule, epochs: int) -> Figures:
    """Trains, and tells the seconds, texts' tokens and optimizer steps of an epoch, and each adapter's last loss."""
    clock = _Epochs()
    given = {**cfg.trainer, "max_epochs": epochs, "check_val_every_n_epoch": epochs, "enable_progress_bar": False}
    trainer = instantiate(given, logger=[], callbacks=[clock])
    trainer.fit(method, RunsDataModule([data]))
    tokens = sum(len(row.choices[0].input_ids) for row in data.rows("train"))
    return {
        "seconds": median(clock.seconds[1:]), "first_seconds": clock.seconds[0], "tokens": tokens,
        "steps": trainer.num_training_batches, "compiled": method.passes.replayed,
        "losses": [summary["loss"] for summary in method.adapter_summaries("val")],
    }  # fmt: skip


def add(
    name: str, tasks: int = 23, rows: int = 64, epochs: int = 2, batch_size: int = 8, root: str | None = None,
    random: bool = False,
) -> Figures:  # fmt: skip
    """A chain of so many tasks, and the same with one more.

    Args:
        batch_size: see `one_pass`.
    """
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        found = {}
        for out, number, more in ((old, tasks, []), (new, tasks + 1, [f"method.start={old}"])):
            own = [
                *more,
                f"data.batch_size={batch_size}",
                f"trainer.max_epochs={epochs}",
                "+trainer.enable_progress_bar=false",
                f"logger.save_dir={out}",
            ]
            found[out] = _run(Job(chain(name, number, rows, root, *own, random=random), RunFolder(out)))
        kept = [path.relative_to(old) for path in (old / "adapters").glob("*/*") if path.parent.name != "selector"]
        if changed := [path for path in kept if (old / path).read_bytes() != (new / path).read_bytes()]:
            raise LorachainsError(f"{len(changed)} of {len(kept)} files of experts were changed: {changed[0]}")
    before, after = found.values()
    key = "test/oracle/{}/perplexity"
    names = {path.parent.name for path in kept}
    apart = max(abs(after["metrics"][key.format(n)] / before["metrics"][key.format(n)] - 1) for n in names)
    told = {
        when: {"seconds": of["seconds"]} | {key: of["metrics"][key] for key in TOLD}
        for when, of in (("the chain", before), ("one task more", after))
    }
    return told | {"experts": tasks, "unchanged_files": len(kept), "furthest perplexity of an expert apart": apart}


def _run(job: Job) -> Figures:
    start = time.perf_counter()
    [outcome] = train_jobs([job])
    if isinstance(outcome, Exception):
        raise outcome
    return {"seconds": time.perf_counter() - start, "metrics": outcome}


if __name__ == "__main__":
    run({"one_pass": one_pass, "add": add})
