"""Peak memory of COLA's training steps before and after knots, in both modes, against plain LoRA, in one process.

    python benchmarks/knot_memory.py memory model=FILE.gguf
    python benchmarks/knot_memory.py memory model=opt-1.3b random=true
    python benchmarks/knot_memory.py memory model=llama2-7b random=true rows=4 seq=512

Prints JSON: of each mode and chain length, the most that was allocated during forward, backward and optimizer step of
the same batch (CUDA only), by the plain passes. Chain length 1 is plain LoRA; it is measured again after all others, by
rewinding, so that nothing but the links differs.
"""

from typing import Any

import torch
from command_line import run
from hydra.utils import instantiate
from measuring import DEVICE, Figures, load, settings, texts

from lorachains.batch import TokenBatch, pack
from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.optim import AdapterRates, build, forget
from lorachains.scoring import answer_losses

MODES: tuple[Any, ...] = ("ledger", "merge")
STEPS = 5


def peak(chain: Chain, optimizer: torch.optim.Optimizer, batch: TokenBatch) -> int:
    """Bytes: the most that was allocated during `STEPS` training steps."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        optimizer.zero_grad()
        chain.add_gradient(chain.differentiate(answer_losses(chain.model, batch).mean()))
        optimizer.step()
    return torch.cuda.max_memory_allocated()


def memory(name: str, rows: int = 8, seq: int = 256, links: int = 4, random: bool = False) -> Figures:
    """The peaks and their ratios to plain LoRA's, by mode.

    Raises:
        LorachainsError: no GPU is visible.
    """
    if not torch.cuda.is_available():
        raise LorachainsError("no GPU is visible, whose memory is to be measured")
    cfg = settings(name, "method=cola", random=random)
    base, recipe = load(cfg), instantiate(cfg.optim)
    batch = pack(texts(base, rows, seq)).to(DEVICE)
    chain = Chain(base.model.train(), instantiate(cfg.adapter))
    found: Figures = {}
    for mode in MODES:
        optimizer = build([recipe], chain.flat)
        AdapterRates(optimizer, torch.tensor([1e-4], device=DEVICE))
        peak(chain, optimizer, batch)  # warm-up: kernels' own workspaces
        peaks: dict[str, int] = {}
        for link in range(1, links + 1):
            peaks[f"chain length {link}"] = peak(chain, optimizer, batch)
            chain.tie(link, mode)
            chain.extend()
            forget(optimizer, build([recipe], chain.flat))
        chain.rewind(0)
        peaks["chain length 1 again"] = peak(chain, optimizer, batch)
        lora = peaks["chain length 1"]
        found[mode] = {key: {"bytes": value, "ratio": round(value / lora, 4)} for key, value in peaks.items()}
    return found


if __name__ == "__main__":
    run({"memory": memory})
