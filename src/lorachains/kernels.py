"""Whether there are kernels of our own for a tensor, in Triton, which comes with PyTorch for CUDA on Linux."""

import logging
from importlib.util import find_spec

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_works: bool | None = None


def usable(tensor: Tensor) -> bool:
    """Of one on a GPU, in half precision, where Triton works."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and _triton_works(tensor)


def _triton_works(tensor: Tensor) -> bool:
    """Whether a kernel can be built and launched; tried out once. Triton needs a C compiler, for one."""
    global _works
    if _works is None:
        _works = find_spec("triton") is not None and _try(tensor)
    return _works


def _try(tensor: Tensor) -> bool:
    from lorachains import triton_lora  # imports Triton

    few = tensor.new_zeros(16, 16)
    try:
        with torch.cuda.device_of(tensor):
            triton_lora.down(few, few.unsqueeze(0), few.new_zeros(1, dtype=torch.int64))
    except Exception as error:  # Triton's own, and what it calls
        why = next(iter(str(error).splitlines()), type(error).__name__)
        log.warning("Triton doesn't work here, so PyTorch's own kernels are used, which are slower: %s", why)
        return False
    return True
