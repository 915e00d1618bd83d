"""MoA's training step and generation by its number of experts, against one LoRA and PEFT's X-LoRA, in one process.

    python benchmarks/mixtures.py moa model=smollm2-135m output=moa.json experts=2,8,32

All experts have the same factors, so that whatever the routers decide, losses and texts are those of one LoRA of that
rank: they are compared before speeds are given, the texts in float32. Each part of the file has one number of experts,
with the one LoRA measured beside it; the same command goes on after the parts that are there.

A step is that of stage 2 (experts and routers, routes by label), over texts of all domains. That of X-LoRA is forward
and backward of the same texts alone, of its router ("xlora") or of router and adapters ("xlora_trained"). Generation
begins with the decision, from the prompts, and then serves all experts, each its share of the rows. X-LoRA reads the
whole text anew for each token, by all experts, which takes minutes with many: it is left out above `xlora` of them.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hf_peft
import measuring
import torch
from command_line import Parts, run
from measuring import DEVICE, Figures, check_same, check_same_texts, make, settings, take_out
from serving import REPEATS, prompts, told
from torch.nn import functional as F

from lorachains.batch import Tokens, pack
from lorachains.errors import LorachainsError
from lorachains.generation import Generator
from lorachains.methods import Lora, Moa
from lorachains.models import LanguageModel, fingerprint
from lorachains.transfer import save_adapter


def moa(
    name: str, output: str, experts: Sequence[int] = (2, 8, 32), rows: int = 32, seq: int = 64, new: int = 32,
    steps: int = 120, random: bool = False, skip: Sequence[str] = (), xlora: int = 8,
) -> Figures:  # fmt: skip
    """A part for each number of experts.

    Args:
        output: a file that has each part as soon as it is found; the same command goes on from there.
        rows: of a batch, of training as of generation: a multiple of each number of experts.
        skip: numbers of experts to leave out.
        xlora: so many experts at most are X-LoRA's too.
    """
    if uneven := [number for number in experts if rows % number]:
        raise LorachainsError(f"rows={rows} can't be shared evenly by {uneven[0]} experts: give a multiple")
    given = {"model": name, "rows": rows, "seq": seq, "new": new, "steps": steps, "random": random}
    parts, base = Parts(Path(output), given, skip), measuring.load(settings(name, random=random))
    given_rows, asked = measuring.texts(base, rows * steps, seq), prompts(rows)
    for number in experts:
        measure = partial(_beside_one, name, base, number, given_rows, rows, asked, new, number <= xlora)
        parts.find(f"{number} experts", measure)
    return parts.found


def _beside_one(
    name: str, base: LanguageModel, experts: int, given: Sequence[Tokens], rows: int, asked: Sequence[str], new: int,
    xlora: bool,
) -> Figures:  # fmt: skip
    """MoA and, if asked for, X-LoRA of so many experts, and one LoRA."""
    names = ",".join(measuring.names(experts))
    mixture = settings(name, "method=moa", f"method.names=[{names}]", "method.stage1_epochs=0")
    sides = {"lora": (settings(name, "method=lora"), 1), "moa": (mixture, experts)}
    one, several = (_texts(cfg, measuring.exact(base), asked, new) for cfg, _ in sides.values())
    check_same_texts(one, several)
    found = {side: _side(cfg, base, given, rows, tasks, asked, new) for side, (cfg, tasks) in sides.items()}
    check_same([found["moa"]["loss"]], [found["lora"]["loss"]])
    if xlora:
        found |= _by_xlora(sides["lora"][0], base, experts, given[:rows], found["lora"]["loss"], asked, new, one)
    return found | {"ratios": _ratios(found)}


def _by_xlora(
    cfg: Any, base: LanguageModel, experts: int, given: Sequence[Tokens], loss: float, asked: Sequence[str], new: int,
    expected: Sequence[str],
) -> Figures:  # fmt: skip
    """X-LoRA of so many copies of the config's LoRA, whose loss and texts have to be these."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        method = _made(cfg, base)
        save_adapter(method.chain, Path(folder), base.name, fingerprint(base.model), 0)
        take_out(method)
        step = partial(hf_peft.xlora_step, base, experts, given, device=DEVICE, start=Path(folder), warmup=3, steps=10)
        for side, trained in (("xlora", False), ("xlora_trained", True)):
            found[side] = measuring.or_why(partial(_step_of_xlora, step, trained, loss))
        said = partial(hf_peft.xlora_generate, device=DEVICE, start=Path(folder), repeats=REPEATS)
        generation = partial(_said_by_xlora, said, base, experts, asked, new, expected)
        found["xlora"]["generation"] = measuring.or_why(generation)
    return found


def _made(cfg: Any, base: LanguageModel) -> Lora:
    method = make(cfg, base, 1)
    measuring.alike(method.chain)
    return method


def _side(
    cfg: Any, base: LanguageModel, given: Sequence[Tokens], rows: int, tasks: int, asked: Sequence[str], new: int
) -> Figures:
    """The first loss, generation and a step of one of our methods."""
    method = _made(cfg, base)
    try:
        loss = _loss(method, given[:rows])
        generation = told(_continued(method, asked, new), REPEATS)
        del generation["texts"]
        return {"loss": loss, "generation": generation} | measuring.train(method, cfg, base, given, rows, tasks)
    finally:
        take_out(method)


def _texts(cfg: Any, base: LanguageModel, asked: Sequence[str], new: int) -> list[str]:
    method = _made(cfg, base)
    return list(told(_continued(method, asked, new), 0)["texts"])


def _loss(method: Lora, given: Sequence[Tokens]) -> float:
    """The language model's mean loss over texts of one length, which the experts share evenly, by label."""
    experts = len(method.names)
    owners = [i % experts for i in range(len(given))] if experts > 1 else None
    if isinstance(method, Moa):
        method.continuing = True  # with what routers cost, and learn
    terms, _ = method.passes.train(pack(given, owners, experts=experts).to(DEVICE))
    if isinstance(method, Moa):
        method.continuing = False
    return float(terms["lm"].mean())


def _continued(method: Lora, asked: Sequence[str], new: int) -> Any:
    """A function that gives the new texts and the number of their tokens."""
    method.model.eval()
    tokenizer, experts = method.base.tokenizer, len(method.names)
    prompts, pad = [tokenizer(text).input_ids for text in asked], tokenizer.pad_token_id
    generator = Generator(method.model, pad, None, graphs=DEVICE == "cuda")

    def generate() -> tuple[list[str], int]:
        if isinstance(method, Moa):
            # What they cost counts; then each expert gets its share.
            logits = method.mixture.logits(prompts, pad, graphs=True)
            even = F.one_hot(torch.arange(len(prompts), device=logits.device) % experts, experts)
            found = method.mixture.generate(generator, prompts, new, even.to(logits.dtype).expand_as(logits))
        else:
            found = generator(prompts, new)
        return tokenizer.batch_decode(found), sum(map(len, found))

    return generate


def _step_of_xlora(step: Any, trained: bool, expected: float) -> Figures:
    found: Figures = step(trainable_adapters=trained)
    check_same([found["loss"]], [expected])
    return {"loss": found["loss"], "step_seconds": found["seconds"]}


def _said_by_xlora(
    said: Any, base: LanguageModel, experts: int, asked: Sequence[str], new: int, expected: Sequence[str]
) -> Figures:
    same = said(measuring.exact(base), experts, asked, new, repeats=0)["tokens"]
    check_same_texts(expected, base.tokenizer.batch_decode(same))
    found: Figures = said(base, experts, asked, new)
    del found["tokens"]
    return found


def _ratios(found: Figures) -> dict[str, float]:
    """Of a step's seconds and of generated tokens a second, as far as they were measured."""
    steps = {side: of["step_seconds"] for side, of in found.items() if "step_seconds" in of}
    said = {side: of["generation"] for side, of in found.items() if "generation" in of}
    speeds = {side: of["tokens_per_second"] for side, of in said.items() if "tokens_per_second" in of}
    ratios = {"step, moa / lora": steps["moa"] / steps["lora"]}
    ratios["generation, moa / lora"] = speeds["moa"] / speeds["lora"]
    others = [side for side in found if side.startswith("xlora")]
    ratios |= {f"step, {side} / moa": steps[side] / steps["moa"] for side in others if side in steps}
    return ratios | {f"generation, moa / {side}": speeds["moa"] / speeds[side] for side in others if side in speeds}


if __name__ == "__main__":
    run({"moa": moa})
