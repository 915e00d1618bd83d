"""Runs before any test module: no network, and jaxtyping's shapes checked at every call of the pure modules."""

import os
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries are imported, so set before that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU, program by program; read by what follows

import pytest
from jaxtyping import install_import_hook
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

_CHECKED = (
    "bank", "batch", "blocks", "chain", "data.tokens", "decisions", "filling", "graphs", "inject", "live_link",
    "lowrank", "mixture", "optim", "packing", "padded_attention", "routers", "routing", "scoring", "selection.trie",
    "spectra", "theory.frank_wolfe", "theory.links", "theory.problems",
)  # fmt: skip
install_import_hook([f"lorachains.{module}" for module in _CHECKED], "beartype.beartype")

from lorachains.models import byte_tokenizer  # noqa: E402  after the hook

torch.set_num_threads(1)  # the models are so small that threads only get into each other's way

_REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention of plain products, none of them over padding, as FLOPs are counted."""
    monkeypatch.setattr("lorachains.padded_attention.size_class", lambda length: length)
    with sdpa_kernel(SDPBackend.MATH):
        yield


_ON_GPUS = [
    pytest.param(("cuda", dtype), marks=pytest.mark.gpu, id=f"cuda-{dtype}")
    for dtype in (torch.bfloat16, torch.float16)
]


@pytest.fixture(params=[pytest.param(("cpu", torch.float32), id="interpreted"), *_ON_GPUS])
def empty(request: pytest.FixtureRequest) -> torch.Tensor:
    """An empty tensor where Triton's kernels run: on a GPU, or without one interpreted on the CPU."""
    pytest.importorskip("triton", reason="Triton isn't installed")
    device, dtype = request.param
    if (device == "cuda") != torch.cuda.is_available():
        pytest.skip("no CUDA device" if device == "cuda" else "kernels run on the CUDA device")
    return torch.empty(0, device=device, dtype=dtype)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the official distributions' files; the test is skipped where there is none."""
    root = Path(os.environ.get("LORACHAINS_DATA_ROOT") or _REPO.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no data folder at {root}: set LORACHAINS_DATA_ROOT")
    return root


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    return byte_tokenizer()
