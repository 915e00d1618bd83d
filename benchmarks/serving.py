"""Generation through the bank against PEFT's `adapter_names`, and against one merged model, in one process.

    python benchmarks/serving.py model=smollm2-135m rows=24 adapters=24 new=128

Prints JSON: generated tokens a second, prefill included, medians of `REPEATS`. Prompts are of one length; no row ends
early. Both sides have random adapters of rank 8 on PEFT's default targets.
"""

import copy
import json
import sys
import time
from statistics import median
from typing import Any

import hf_peft
import torch
from hydra.utils import instantiate
from measuring import DEVICE, load, settings

from lorachains.chain import Chain
from lorachains.generation import Generator
from lorachains.models import LanguageModel
from lorachains.routing import Routing

REPEATS = 5


def ours(base: LanguageModel, adapter: Any, adapters: int, prompts: list[list[int]], new: int) -> dict[str, float]:
    """Each row by its own adapter; with none, the plain model, as if one adapter had been merged into it."""
    model = copy.deepcopy(base.model).to(DEVICE).eval()
    if adapters:
        chain = Chain(model, adapter, range(adapters))
        for tensor in chain.parameters():
            tensor.data.normal_(std=0.02)
        routing, owners = chain.routing, torch.arange(len(prompts), device=DEVICE) % adapters
    else:
        routing, owners = Routing(), None
    generator = Generator(model, routing, base.tokenizer.pad_token_id, None, graphs=DEVICE == "cuda")
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        texts = generator(prompts, new, owners)  # its last act is to bring the tokens to the host
        times.append(time.perf_counter() - start)
        assert all(len(text) == new for text in texts)
    seconds = median(times[2:])
    return {"seconds": seconds, "tokens_per_second": len(prompts) * new / seconds}


def main() -> None:
    """`key=value …`."""
    given = dict(pair.split("=", 1) for pair in sys.argv[1:])
    rows, adapters, new = (
        int(given.get(key, default)) for key, default in (("rows", 24), ("adapters", 24), ("new", 128))
    )
    name = given.get("model", "smollm2-135m")
    cfg = settings(name)
    base = load(cfg)
    texts = [
        f"Question {i}: what is the sum of {i * 37 % 90 + 10} and {i * 53 % 90 + 10}, and why?"
        for i in range(10, 10 + rows)
    ]
    prompts = [base.tokenizer(text).input_ids for text in texts]
    found: dict[str, Any] = {
        "ours, mixed": ours(base, instantiate(cfg.adapter), adapters, prompts, new),
        "ours, merged": ours(base, None, 0, prompts, new),
    }
    theirs = hf_peft.generate(base, adapters, texts, new, device=DEVICE, repeats=REPEATS)
    found |= {f"PEFT, {kind}": {k: v for k, v in of.items() if k != "texts"} for kind, of in theirs.items()}
    speed = {side: of["tokens_per_second"] for side, of in found.items()}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    ratios = {
        "ours, mixed / PEFT, mixed": speed["ours, mixed"] / speed["PEFT, mixed"],
        "ours, mixed / ours, merged": speed["ours, mixed"] / speed["ours, merged"],
    }
    head = {"command": " ".join(sys.argv[1:]), "device": device, "torch": torch.__version__}
    print(json.dumps(head | found | {"ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
