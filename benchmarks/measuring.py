"""What the benchmarks share: the project's parts at work on random texts of one length, and how they are timed.

A step's time is the median over windows of `WINDOW` optimizer steps of a whole fit, data loading included; the first
window is warm-up.
"""

import copy
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any, cast

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lorachains.batch import IGNORED, Tokens, pack
from lorachains.chain import Chain
from lorachains.config import conf_dir
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.tasks import Example, Task
from lorachains.data.tokens import Encoded
from lorachains.errors import LorachainsError
from lorachains.jobs import stack
from lorachains.methods import Lora
from lorachains.models import LanguageModel
from lorachains.optim import AdapterRates

WINDOW = 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Figures = dict[str, Any]


def chosen(name: str) -> list[str]:
    """The overrides that choose the model: one of `conf/model/`, a hub name, or a file's path."""
    return ["model=hf", f"model.name={name}"] if "/" in name else [f"model={name}"]


def settings(name: str, *overrides: str, random: bool = False) -> Any:
    """The project's config for the model."""
    more = ["model.random_weights=true"] if random else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [*chosen(name), *more, *overrides])


def load(cfg: Any) -> LanguageModel:
    """The model, on the device; random weights are drawn there."""
    with torch.device(DEVICE):
        base: LanguageModel = instantiate(cfg.model)
    model: Any = base.model
    if not cfg.model.get("quantization"):  # such a model is there, and may not be moved
        model.to(DEVICE)
    return base


def texts(base: LanguageModel, count: int, seq: int) -> list[Tokens]:
    """Random tokens; the last eighth is the answer."""
    ids = torch.randint(3, base.model.config.vocab_size, (count, seq), generator=torch.Generator().manual_seed(0))
    answer = seq - seq // 8
    return [Tokens(row, [IGNORED] * answer + row[answer:]) for row in ids.tolist()]


def rte(base: LanguageModel, name: str, root: str, count: int) -> list[Tokens]:
    """RTE's training texts as they are, again and again.

    Args:
        root: of `superglue/`.
    """
    cfg = settings(name, "data=superglue", "data.task=rte", f"data.root='{root}'", "data.val_size=8")
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    data.setup()
    rows = data.rows("train")
    return [rows[i % len(rows)].choices[0] for i in range(count)]


def names(tasks: int) -> list[str]:
    """Those of the tasks of `FixedRows`."""
    return [f"random{task}" for task in range(tasks)]


class FixedRows(TaskDataModule):
    """Texts, each task's in turn; a handful to validate."""

    def __init__(self, base: LanguageModel, texts: Sequence[Tokens], batch_size: int, tasks: int = 1):
        super().__init__(
            base.tokenizer, cast(Any, None), names(tasks), batch_size=batch_size, eval_batch_size=None, train_size=1,
            val_size=1, test_size=1, seed=0, order_seed=0, max_length=4096,
        )  # fmt: skip
        examples = [Example(name, "", "yes", f"{name}:1", ("yes",)) for name in names(tasks)]
        rows = [Encoded(examples[i % tasks], i % tasks, [text]) for i, text in enumerate(texts)]
        self.tasks = [Task(name, lambda row: examples[0]) for name in names(tasks)]
        self._rows = {"train": rows, "val": rows[: 2 * tasks], "test": rows[: 2 * tasks]}


class Windows(L.Callback):
    """Seconds a step, for each window after the first, and the losses of the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[torch.Tensor] = []
        self._began = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        if not self._began:
            self.losses.append(outputs["loss"])
        if trainer.global_step % WINDOW == 0:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if self._began:
                self.seconds.append((now - self._began) / WINDOW)
            self._began = now


def make(cfg: Any, base: LanguageModel, runs: int) -> Lora:
    """The config's method with so many runs side by side, which differ in their seeds."""
    parts = [instantiate(cfg.method, _partial_=True) for _ in range(runs)]
    method = stack([partial(p.func, **{**p.keywords, "seed": seed}) for seed, p in enumerate(parts)], base)
    assert isinstance(method, Lora)
    return method


def train(
    method: Lora, cfg: Any, base: LanguageModel, rows: Sequence[Tokens], batch_size: int, tasks: int = 1
) -> Figures:
    """One epoch over the rows, by each run."""
    data = FixedRows(base, rows, batch_size, tasks)
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
        "first_loss": fmean(torch.stack(windows.losses).tolist()),
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


def take_banks_out(chain: Chain) -> None:
    """Puts the layers back that the chain's banks stand for."""
    for name, bank in chain.banks.items():
        parent, _, child = name.rpartition(".")
        setattr(chain.model.get_submodule(parent), child, bank.base_layer)


def take_out(method: Lora) -> None:
    """Puts the model back as it was, without banks."""
    take_banks_out(method.chain)
    for module in method.model.modules():
        module._compiled_call_impl = None
        module._forward_hooks.clear()
    torch.compiler.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def alike(chain: Chain) -> None:
    """Gives all adapters the same random factors, those of any other chain that is given some: none is zero."""
    generator = torch.Generator().manual_seed(0)
    for bank in chain.banks.values():
        for factors in (bank.lora_A, bank.lora_B):
            factors.copy_(torch.randn(factors.shape[1:], generator=generator) * 0.02)


def check_same(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Refuses to compare the speed of two different computations."""
    apart = abs(fmean(ours) - fmean(theirs)) / fmean(theirs)
    if not apart < 0.02:
        raise LorachainsError(f"the two sides train differently: mean losses {fmean(ours):.4f} and {fmean(theirs):.4f}")


def check_same_texts(ours: Sequence[object], theirs: Sequence[object]) -> None:
    """Refuses to compare the speed of two sides that generate other texts, given as text or as tokens."""
    different = [row for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine != other]
    if different:
        raise LorachainsError(
            f"the sides generate differently: {len(different)} of {len(ours)} texts, first {different[0]}"
        )


def endless(base: LanguageModel) -> LanguageModel:
    """The same model with a tokenizer that has no end-of-sequence token, so that no text ends early."""
    tokenizer: Any = copy.deepcopy(base.tokenizer)
    tokenizer.pad_token, tokenizer.eos_token = tokenizer.pad_token or tokenizer.eos_token, None
    return replace(base, tokenizer=tokenizer)


def exact(base: LanguageModel) -> LanguageModel:
    """A copy in float32, of which equal texts can be asked: with fewer digits many tokens are as likely as others."""
    model: Any = copy.deepcopy(base.model)
    return replace(base, model=model.float())


def or_why(measure: Callable[[], Figures]) -> Figures:
    """What is measured, or why it can't be: of a side that isn't ours."""
    try:
        return measure()
    except (LorachainsError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return {"not_measured": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}


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
