"""Training speed against HF Trainer + PEFT, both sides on one machine in one process, in optimizer steps.

    python benchmarks/speed.py step model=smollm2-135m rows=8 seq=64
    python benchmarks/speed.py step model=smollm2-135m rows=8 root=DATA
    python benchmarks/speed.py step model=opt-1.3b rows=8 seq=256 random=true
    python benchmarks/speed.py step model=llama2-7b rows=4 seq=512 random=true
    python benchmarks/speed.py side_by_side model=smollm2-135m rows=8 seq=64 runs=1,5,25,50
    python benchmarks/speed.py mixed model=smollm2-135m rows=64 seq=64 adapters=2,32
    python benchmarks/speed.py knot model=llama2-7b rows=4 seq=512 random=true

Each prints JSON. Texts are random tokens of one length; an eighth of each is the answer. With `root` they are RTE's of
`root/superglue`, as an experiment has them: of many lengths, which HF Trainer pads, with short answers. A step's time
is the median over windows of `WINDOW` optimizer steps of a whole fit, data loading included. Before speeds are given,
the losses of both sides' first steps, from the same adapter and in the same order, are compared.
"""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import hf_peft
import torch
from command_line import run
from measuring import (
    DEVICE,
    Figures,
    check_same,
    load,
    losses,
    make,
    or_why,
    rte,
    settings,
    take_out,
    texts,
    timed,
    train,
)  # fmt: skip

from lorachains.batch import pack
from lorachains.data.batching import epoch_batches
from lorachains.methods import Lora
from lorachains.models import LanguageModel, fingerprint
from lorachains.transfer import save_adapter


def step(
    name: str, rows: int, seq: int = 64, random: bool = False, best: bool = False, steps: int = 120,
    root: str | None = None,
) -> Figures:  # fmt: skip
    """One COLA run against HF Trainer + PEFT's LoRA run, a step."""
    cfg = settings(name, "method=cola", "knots=at_steps", f"knots.steps=[{steps // 2}]", random=random)
    base = load(cfg)
    given = rte(base, name, root, rows * steps) if root else texts(base, rows * steps, seq)
    lengths = [len(text.input_ids) for text in given]
    hf = partial(hf_peft.train, base, batch_size=rows, lr=5e-4, seed=0, device=DEVICE)
    order = epoch_batches(lengths, rows, 0, 0)[:20]
    with tempfile.TemporaryDirectory() as folder:
        method = make(cfg, base, 1)
        method.model.train()
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
    tokens = sum(lengths) / steps
    flops = 4 * count(base) * tokens / found["ours"]["step_seconds"]
    take_out(method)
    if best:
        for settings_of in ("best", "liger"):  # liger's kernels stay for the rest of the process
            measured = or_why(partial(hf, given, settings=settings_of, steps=min(steps, 60)))
            found[f"hf_{settings_of}"] = _if_it_trains(measured, found["hf_default"]["loss"])
    figures = {side: {k: v for k, v in of.items() if k != "losses"} for side, of in found.items()}
    theirs_seconds = {s: of["step_seconds"] for s, of in found.items() if s != "ours" and "step_seconds" in of}
    ratios = {f"{side} / ours": s / found["ours"]["step_seconds"] for side, s in theirs_seconds.items()}
    ceiling = matmul_ceiling()
    means = {"ours": fmean(ours), "theirs": fmean(theirs["losses"])}
    return figures | {
        "tokens": tokens, "mean of the first losses": means, "ratios": ratios, "flops_per_second": flops,
        "ceiling": ceiling, "of_ceiling": flops / ceiling if ceiling else None,
    }  # fmt: skip


def _if_it_trains(measured: Figures, loss: float) -> Figures:
    """What was measured of other settings, if their mean loss is that of the default ones: else it is no figure."""
    found = measured.get("loss", loss)
    if abs(found - loss) <= 0.02 * abs(loss):  # rounding, and texts in another order; False for NaN
        return measured
    return {"not_measured": f"the mean loss is {found:.4g}, with the default settings {loss:.4g}"}


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
        method.model.train()
        method.chain.flatten()
        batch = pack(texts(base, rows, seq)).to(DEVICE)

        def tie(method: Lora = method, mode: Any = mode) -> None:
            method.chain.tie(1, mode)
            method.chain.extend()

        found[mode] = {"step": timed(lambda: method.passes.train(batch), knots)} | {"knot": timed(tie, knots)}  # noqa: B023
        take_out(method)
        del base, method
    return found


def count(base: LanguageModel) -> int:
    """Parameters that a token is multiplied with, without the embeddings."""
    model: Any = base.model
    embeddings = model.get_input_embeddings().weight.numel()
    tied = model.config.tie_word_embeddings
    return sum(p.numel() for p in model.parameters()) - embeddings * (1 if tied else 2)


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


if __name__ == "__main__":
    run({"step": step, "side_by_side": side_by_side, "mixed": mixed, "knot": knot})
