"""Training speed against HF Trainer + PEFT, both sides on one machine in one process, in optimizer steps.

    python benchmarks/speed.py step model=smollm2-135m rows=8 seq=64
    python benchmarks/speed.py step model=opt-1.3b rows=8 seq=256 random=true
    python benchmarks/speed.py step model=llama2-7b rows=4 seq=512 random=true
    python benchmarks/speed.py side_by_side model=smollm2-135m rows=8 seq=64 runs=1,5,25,50
    python benchmarks/speed.py mixed model=smollm2-135m rows=64 seq=64 adapters=2,32
    python benchmarks/speed.py knot model=llama2-7b rows=4 seq=512 random=true

Each prints JSON. Texts are random tokens of one length; an eighth of each is the answer. A step's time is the median
over windows of `WINDOW` optimizer steps of a whole fit, data loading included. Before speeds are given, the losses of
both sides' first steps, from the same adapter and in the same order, are compared.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import hf_peft
import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lorachains.batch import IGNORED, Tokens, pack
from lorachains.config import conf_dir
from lorachains.data import Example, RunsDataModule, Task, TaskDataModule
from lorachains.data.batching import epoch_batches
from lorachains.data.tokens import Encoded
from lorachains.jobs import stack
from lorachains.methods import Lora
from lorachains.models import LanguageModel, fingerprint
from lorachains.optim import AdapterRates
from lorachains.transfer import save_adapter

WINDOW = 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Figures = dict[str, Any]


class FixedRows(TaskDataModule):
    """Random texts of one length; a handful to validate."""

    def __init__(self, base: LanguageModel, texts: Sequence[Tokens], batch_size: int):
        super().__init__(
            base.tokenizer, None, ["random"], batch_size=batch_size, eval_batch_size=None, train_size=1, val_size=1,
            test_size=1, seed=0, order_seed=0, max_length=4096,
        )  # type: ignore[arg-type]  # fmt: skip
        example = Example("random", "", "yes", "random:1", ("yes",))
        rows = [Encoded(example, 0, [text]) for text in texts]
        self.tasks = [Task("random", lambda row: example)]
        self._rows = {"train": rows, "val": rows[:2], "test": rows[:2]}


class Windows(L.Callback):
    """Seconds a step, for each window after the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % WINDOW == 0:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if self._began:
                self.seconds.append((now - self._began) / WINDOW)
            self._began = now


def settings(name: str, *overrides: str, random: bool = False) -> Any:
    """The project's config for the model."""
    more = ["model.random_weights=true"] if random else []
    model = ["model=hf", f"model.name={name}"] if "/" in name else [f"model={name}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [*model, *more, *overrides])


def texts(base: LanguageModel, count: int, seq: int) -> list[Tokens]:
    """Random tokens; the last eighth is the answer."""
    ids = torch.randint(3, base.model.config.vocab_size, (count, seq), generator=torch.Generator().manual_seed(0))
    answer = seq - seq // 8
    return [Tokens(row, [IGNORED] * answer + row[answer:]) for row in ids.tolist()]


def make(cfg: Any, base: LanguageModel, runs: int) -> Lora:
    """The config's method with so many runs side by side, which differ in their seeds."""
    parts = [instantiate(cfg.method, _partial_=True) for _ in range(runs)]
    return stack([partial(p.func, **{**p.keywords, "seed": seed}) for seed, p in enumerate(parts)], base)


def train(method: Lora, cfg: Any, base: LanguageModel, rows: Sequence[Tokens], batch_size: int) -> Figures:
    """One epoch over the rows, by each run."""
    data = FixedRows(base, rows, batch_size)
    windows = Windows()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    cfg = {**cfg.trainer, "max_epochs": 1, "enable_progress_bar": False}
    trainer = instantiate(cfg, logger=[], callbacks=[windows])
    trainer.fit(method, RunsDataModule([data.in_order(seed) for seed in range(len(method.seeds))]))
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    return {
        "step_seconds": median(windows.seconds), "windows": windows.seconds, "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak, "compiled": method.passes.replayed,
    }  # fmt: skip


def losses(method: Lora, rows: Sequence[Tokens], order: Sequence[Sequence[int]]) -> list[float]:
    """The losses of the first steps at the rate 5e-4, without schedule, by the plain passes."""
    method.chain.flatten()
    optimizer = method.fresh_optimizer()
    AdapterRates(optimizer, torch.full((1,), 5e-4, device=DEVICE))
    found = []
    for batch in order:
        terms, gradient = method.passes.train(pack([rows[i] for i in batch]).to(DEVICE))
        found.append(float(terms["lm"]))
        method.chain.flat[0].grad = None
        method.add_gradient(gradient, 1.0)
        optimizer.step()
    return found


def take_out(method: Lora) -> None:
    """Puts the model back as it was, without banks."""
    model = method.model
    for name, bank in method.chain.banks.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, bank.base_layer)
    for module in model.modules():
        module._compiled_call_impl = None
        module._forward_hooks.clear()
    torch.compiler.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def load(cfg: Any) -> LanguageModel:
    """The model, on the device; random weights are drawn there."""
    with torch.device(DEVICE):
        base: LanguageModel = instantiate(cfg.model)
    base.model.to(DEVICE)
    return base


def step(name: str, rows: int, seq: int, random: bool = False, best: bool = False, steps: int = 120) -> Figures:
    """One COLA run against HF Trainer + PEFT's LoRA run, a step."""
    cfg = settings(name, "method=cola", "knots=at_steps", f"knots.steps=[{steps // 2}]", random=random)
    base = load(cfg)
    given = texts(base, rows * steps, seq)
    hf = partial(hf_peft.train, base, batch_size=rows, lr=5e-4, seed=0, device=DEVICE)
    order = epoch_batches([seq] * len(given), rows, 0, 0)[:20]
    with tempfile.TemporaryDirectory() as folder:
        method = make(cfg, base, 1)
        method.model.to(DEVICE).train()
        save_adapter(method.chain, Path(folder), base.name, fingerprint(base.model), 0)
        ours = losses(method, given, order)
        take_out(method)
        exact = {"max_grad_norm": 0.0, "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
        in_order = [given[i] for batch in order for i in batch]
        theirs = hf(in_order, settings="default", steps=20, warmup=2, record=True, start=Path(folder), overrides=exact)
    check_same(ours, theirs["losses"])
    found = {"hf_default": hf(given, settings="default", steps=min(steps, 60))}
    method = make(cfg, base, 1)
    found["ours"] = train(method, cfg, base, given, rows)
    flops = 4 * count(base) * rows * seq / found["ours"]["step_seconds"]
    take_out(method)
    if best:
        found["hf_best"] = hf(given, settings="best", steps=min(steps, 60))
    figures = {side: {k: v for k, v in of.items() if k != "losses"} for side, of in found.items()}
    theirs_seconds = {side: of["step_seconds"] for side, of in found.items() if side != "ours"}
    ratios = {f"{side} / ours": s / found["ours"]["step_seconds"] for side, s in theirs_seconds.items()}
    ceiling = matmul_ceiling()
    means = {"ours": fmean(ours), "theirs": fmean(theirs["losses"])}
    return figures | {
        "mean of the first losses": means, "ratios": ratios, "flops_per_second": flops, "ceiling": ceiling,
        "of_ceiling": flops / ceiling if ceiling else None,
    }  # fmt: skip


def check_same(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Refuses to compare the speed of two different computations."""
    apart = abs(fmean(ours) - fmean(theirs)) / fmean(theirs)
    if not apart < 0.02:
        raise SystemExit(f"the two sides train differently: mean losses {fmean(ours):.4f} and {fmean(theirs):.4f}")


def side_by_side(
    name: str, rows: int, seq: int, runs: Sequence[int], random: bool = False, theirs: bool = False, steps: int = 120
) -> Figures:
    """Our step with several runs in one bank, as many as memory holds; and a step of HF Trainer + PEFT's one run."""
    cfg = settings(name, "method=lora", random=random)
    base = load(cfg)
    given = texts(base, rows * steps, seq)
    found, hf = {}, Figures()
    if theirs:
        hf = hf_peft.train(base, given, batch_size=rows, lr=5e-4, seed=0, device=DEVICE, settings="default", steps=40)
        del hf["losses"]
    for number in runs:
        method = make(cfg, base, number)
        try:
            found[str(number)] = train(method, cfg, base, given, rows)
        except torch.OutOfMemoryError:
            found[str(number)] = {"out_of_memory": True}
            break
        finally:
            take_out(method)
            del method
    one = found[str(runs[0])]["step_seconds"]
    each = {n: of["step_seconds"] / int(n) for n, of in found.items() if "step_seconds" in of}
    ratios = {"against_one": {n: one / s for n, s in each.items()}}
    if theirs:
        ratios["hf_default / ours"] = {n: hf["step_seconds"] / s for n, s in each.items()}
    return found | {"seconds_per_run": each, "hf_default": hf} | ratios


def mixed(name: str, rows: int, seq: int, adapters: Sequence[int], random: bool = False, steps: int = 120) -> Figures:
    """One batch of `rows` texts shared by several adapters, against PEFT with one adapter."""
    cfg = settings(name, "method=lora", random=random)
    base = load(cfg)
    found: Figures = {}
    for number in adapters:
        method = make(cfg, base, number)
        found[str(number)] = train(method, cfg, base, texts(base, rows // number * steps, seq), rows // number)
        take_out(method)
    one = texts(base, rows, seq)
    found["peft, one adapter"] = hf_peft.mixed_training_step(base, one, settings="default", device=DEVICE)
    return found


def knot(name: str, rows: int, seq: int, random: bool = False, knots: int = 6) -> Figures:
    """A knot in both modes, against a training step by the plain passes, and the peak of memory of each."""
    found: Figures = {}
    for mode in ("ledger", "merge"):
        cfg = settings(name, "method=cola", f"knots.mode={mode}", random=random)
        base = load(cfg)
        method = make(cfg, base, 1)
        method.model.to(DEVICE).train()
        method.chain.flatten()
        batch = pack(texts(base, rows, seq)).to(DEVICE)

        def tie(method: Lora = method, mode: Any = mode) -> None:
            method.chain.tie(1, mode)
            method.chain.extend()

        found[mode] = {"step": timed(lambda: method.passes.train(batch), knots)} | {"knot": timed(tie, knots)}  # noqa: B023
        take_out(method)
        del base, method
    return found


def timed(work: Callable[[], object], times: int) -> Figures:
    """Median seconds, without the first, and the peak of memory above what was there."""
    seconds = []
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    for _ in range(times):
        start = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else 0
    return {"seconds": median(seconds[1:]), "first_seconds": seconds[0], "peak_bytes_above": peak}


def count(base: LanguageModel) -> int:
    """Parameters that a token is multiplied with, without the embeddings."""
    embeddings = base.model.get_input_embeddings().weight.numel()
    tied = base.model.config.tie_word_embeddings
    return sum(p.numel() for p in base.model.parameters()) - embeddings * (1 if tied else 2)


def matmul_ceiling() -> float | None:
    """The card's bfloat16 matrix product, FLOP/s."""
    if DEVICE != "cuda":
        return None
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        _ = a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(2 * 8192**3 / median(times[2:]))


def run(functions: dict[str, Callable[..., Figures]]) -> None:
    """The command line, `FIGURE key=value …`: prints what one of the functions has found."""
    figure, *given = sys.argv[1:]
    kwargs: Figures = {"name": "smollm2-135m"}
    for pair in given:
        key, _, value = pair.partition("=")
        key = "name" if key == "model" else key
        if key in ("runs", "adapters"):
            kwargs[key] = [int(n) for n in value.split(",")]
        else:
            kwargs[key] = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    head = {"command": " ".join(sys.argv[1:]), "device": device, "torch": torch.__version__}
    print(json.dumps(head | functions[figure](**kwargs), indent=2))


if __name__ == "__main__":
    run({"step": step, "side_by_side": side_by_side, "mixed": mixed, "knot": knot})
