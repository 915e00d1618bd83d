"""What trainer.compile makes of bases that aren't plain: recomputed activations, weights in 4 and in 8 bits.

    python benchmarks/bases.py graphs model=smollm2-135m rows=8 seq=64 output=graphs.json

A part for each kind of base: step time and peak memory of a LoRA run, with passes replayed as CUDA graphs
(`trainer.compile=auto`) and without; where they are not replayed, `why_not` is what the log says. Before that is told,
the losses of both ways' first steps are compared. Weights are quantised from a copy of the model in a folder, since a
GGUF file can't be.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from command_line import Parts, run
from measuring import Figures, check_same, load, make, or_why, settings, take_out, texts, train

from lorachains.graphs import why_not
from lorachains.models import LanguageModel

KINDS = {
    "plain": [], "checkpointing": ["model.checkpointing=true"], "nf4": ["model.quantization=nf4"],
    "int8": ["model.quantization=int8"],
}  # fmt: skip


def graphs(
    name: str, output: str, rows: int = 8, seq: int = 64, steps: int = 120, random: bool = False,
    skip: Sequence[str] = (),
) -> Figures:  # fmt: skip
    """A part for each kind of base.

    Args:
        output: a file that has each part as soon as it is found; the same command goes on from there.
        skip: kinds to leave out.
    """
    given = {"model": name, "rows": rows, "seq": seq, "steps": steps, "random": random}
    parts = Parts(Path(output), given, skip)
    for kind, more in KINDS.items():
        parts.find(kind, partial(or_why, partial(_both_ways, name, more, rows, seq, steps, random)))
    return parts.found


def _both_ways(name: str, more: Sequence[str], rows: int, seq: int, steps: int, random: bool) -> Figures:
    """A step of one base, with graphs and without."""
    with tempfile.TemporaryDirectory() as folder:
        if any("quantization" in setting for setting in more):
            _copy(load(settings(name, random=random)), folder)
            name, random = folder, False
        cfg = settings(name, "method=lora", *more, random=random)
        base, found = load(cfg), {}
        given = texts(base, rows * steps, seq)
        for way in ("false", "auto"):
            cfg.trainer.compile = way
            method = make(cfg, base, 1)
            with _warned() as warnings:
                found[f"compile={way}"] = train(method, cfg, base, given, rows)
            if way == "auto" and not method.passes.replayed:
                found[f"compile={way}"]["why_not"] = why_not(base.model) or "; ".join(warnings)
            take_out(method)
    plain, replayed = found.values()
    check_same([replayed["first_loss"]], [plain["first_loss"]])
    ratios = {key: plain[key] / replayed[key] for key in ("step_seconds", "peak_memory_bytes") if replayed[key]}
    return found | {"compile=false / compile=auto": ratios}


def _copy(base: LanguageModel, folder: str) -> None:
    model: Any = base.model
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


@contextmanager
def _warned() -> Iterator[list[str]]:
    """What is warned of within while passes are prepared."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("lorachains.methods.passes")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)


if __name__ == "__main__":
    run({"graphs": graphs})
