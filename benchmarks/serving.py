"""Generation by many adapters in one batch, in one process: through the bank, by PEFT's `adapter_names`, by swapping.

    python benchmarks/serving.py serving model=smollm2-135m rows=24 new=128 adapters=24

Prints JSON: generated tokens a second, prefill included, medians of `REPEATS`. All sides have the same random adapters
of rank 8 on PEFT's default targets, row i that of number i modulo their number. Prompts are of one length; no row ends
early. Before speeds are given, the texts of all sides are compared in float32, and have to be the same; with fewer
digits near ties fall otherwise: `same_texts` says which share of the texts is the same even so.

Swapping is `lorachains.load(…, resident=True)`, for cards that hold one adapter: each is read from disk when it is its
turn, and answers all of its rows then. One merged model is the plain one, which costs the same.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import hf_peft
from command_line import run
from hydra.utils import instantiate
from measuring import DEVICE, Figures, check_same_texts, endless, exact, load, settings, take_banks_out

from lorachains.answering.engine import Answerer
from lorachains.answering.prompts import Prompts
from lorachains.answering.replies import Choice
from lorachains.chain import Chain
from lorachains.data.selector import INSTRUCTION
from lorachains.models import LanguageModel
from lorachains.transfer import load_adapter

REPEATS = 5
COMPARED = ("ours, swapped", "PEFT, mixed")
"""The sides whose texts have to be those of our mixed batch."""


def prompts(rows: int) -> list[str]:
    """Texts of one length."""
    numbers = range(10, 10 + rows)
    return [f"Question {i}: what is the sum of {i * 37 % 90 + 10} and {i * 53 % 90 + 10}, and why?" for i in numbers]


def told(generate: Callable[[], tuple[Sequence[object], int]], repeats: int) -> Figures:
    """The texts, and how fast they come.

    Args:
        generate: gives the texts and the number of new tokens; the last it does is to bring them to the host.
        repeats: 0 if only the texts are wanted.
    """
    texts, new = generate()
    found: Figures = {"texts": texts}
    times = []
    for _ in range(repeats + 1 if repeats else 0):
        start = time.perf_counter()
        generate()
        times.append(time.perf_counter() - start)
    if repeats:
        found["seconds"] = median(times[1:])
        found["tokens_per_second"] = new / found["seconds"]
    return found


class Given:
    """A selector that knows: text i is answered by the adapter of number i modulo so many."""

    def __init__(self, adapters: int):
        self.adapters = adapters

    def select(self, texts: Sequence[str], k: int = 1, batch_size: int = 16) -> list[Choice]:
        """See `lorachains.answering.selectors.Selector`."""
        return [Choice(str(i % self.adapters)) for i in range(len(texts))]


def ours(
    base: LanguageModel, adapter: Any, folders: Sequence[Path], texts: Sequence[str], new: int, repeats: int
) -> dict[str, Figures]:
    """All adapters in one bank, one adapter at a time, and one model for all rows."""
    names = {str(i): folder for i, folder in enumerate(folders)}
    prompts = Prompts(base.tokenizer, INSTRUCTION, base.model.config.max_position_embeddings)
    base.model.eval()

    def answers(chain: Chain | None, resident: bool = False) -> Figures:
        chosen = Given(len(folders)) if chain else None
        one = Answerer(base, chain, names if chain else {}, prompts, resident=resident, selector=chosen)

        def generate() -> tuple[list[str], int]:
            replies = [answer.replies[0] for answer in one.generate(texts, new, batch_size=len(texts))]
            return [reply.text for reply in replies], sum(reply.tokens for reply in replies)

        return told(generate, repeats)

    found = {"merged": answers(None)}
    chain = Chain(base.model, adapter, range(len(folders) + 1))  # the last one is the base
    for expert, folder in enumerate(folders):
        load_adapter(chain, folder, expert)
    found["mixed"] = answers(chain)
    take_banks_out(chain)
    chain = Chain(base.model, adapter)
    found["swapped"] = answers(chain, resident=True)
    take_banks_out(chain)
    return found


def sides(
    base: LanguageModel, adapter: Any, adapters: int, texts: Sequence[str], new: int, repeats: int
) -> dict[str, Figures]:
    """Every way's texts and figures, from the same adapters."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = hf_peft.generate(base, adapters, texts, new, device=DEVICE, repeats=repeats, save=Path(folder))
        mine = ours(base, adapter, [Path(folder, hf_peft.named(i)) for i in range(adapters)], texts, new, repeats)
    for of in theirs.values():
        of["texts"] = [text.strip() for text in base.tokenizer.batch_decode(of.pop("tokens"), skip_special_tokens=True)]
    return {f"ours, {way}": of for way, of in mine.items()} | {f"PEFT, {way}": of for way, of in theirs.items()}


def serving(name: str, rows: int = 24, adapters: int = 24, new: int = 128, random: bool = False) -> Figures:
    """Tokens a second of each way, and their ratios to our mixed batch."""
    cfg = settings(name, random=random)
    base, texts = endless(load(cfg)), prompts(rows)
    same = sides(exact(base), instantiate(cfg.adapter), adapters, texts, new, repeats=0)
    for side in COMPARED:
        check_same_texts(same["ours, mixed"]["texts"], same[side]["texts"])
    found = sides(base, instantiate(cfg.adapter), adapters, texts, new, REPEATS)
    texts_of = {side: of.pop("texts") for side, of in found.items()}
    speed = {side: of["tokens_per_second"] for side, of in found.items()}
    mixed = texts_of["ours, mixed"]
    return found | {
        "ratios": {
            f"ours, mixed / {side}": speed["ours, mixed"] / speed[side] for side in found if side != "ours, mixed"
        },
        "same_texts": {side: fmean(map(str.__eq__, mixed, texts_of[side])) for side in COMPARED},
    }


if __name__ == "__main__":
    run({"serving": serving})
