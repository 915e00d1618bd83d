"""Peak memory of training steps before and after knots, against plain LoRA at the same rank, in one process.

    python benchmarks/knot_memory.py model=hf model.name=FILE.gguf
    python benchmarks/knot_memory.py model=opt-1.3b model.random_weights=true

Each line: the most that was allocated during forward, backward and optimizer step of the same batch (CUDA only). Chain
length 1 is plain LoRA; it is measured again after all others, by rewinding, so that nothing but the links differs.
"""

import json
import sys

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.config import conf_dir
from lorachains.optim import AdapterRates, build, forget
from lorachains.scoring import answer_losses

ROWS, SEQ, STEPS, LINKS = 8, 256, 5, 4


def peak(chain: Chain, optimizer: torch.optim.Optimizer, batch: TokenBatch) -> int:
    """Bytes: the most that was allocated during `STEPS` training steps."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        optimizer.zero_grad()
        chain.add_gradient(chain.differentiate(answer_losses(chain.model, batch).mean()))
        optimizer.step()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    """Prints the peaks and their ratios to plain LoRA's as JSON."""
    if not torch.cuda.is_available():
        sys.exit("error: no GPU is visible, whose memory is to be measured")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*sys.argv[1:], "method=cola"])
    model = instantiate(cfg.model).model.cuda().train()
    ids = torch.randint(0, model.config.vocab_size, (ROWS, SEQ)).tolist()
    batch = pack([Tokens(row, [IGNORED] * (SEQ - 8) + row[-8:]) for row in ids]).to("cuda")
    recipe, results = instantiate(cfg.optim), {}
    chain = Chain(model, instantiate(cfg.adapter))
    optimizer = build([recipe], chain.flat)
    AdapterRates(optimizer, torch.tensor([1e-4], device="cuda"))
    peak(chain, optimizer, batch)  # warm-up: kernels' own workspaces
    for link in range(1, LINKS + 1):
        results[f"chain length {link}"] = peak(chain, optimizer, batch)
        chain.tie(link)
        chain.extend()
        forget(optimizer, build([recipe], chain.flat))
    chain.rewind(0)
    results["chain length 1 again"] = peak(chain, optimizer, batch)
    lora = results["chain length 1"]
    report = {"device": torch.cuda.get_device_name(), "model": cfg.model.name, "rows": ROWS, "seq": SEQ}
    print(json.dumps(report | {key: {"bytes": v, "ratio": round(v / lora, 4)} for key, v in results.items()}, indent=2))


if __name__ == "__main__":
    main()
