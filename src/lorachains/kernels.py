"""Whether there are kernels of our own for a tensor, in Triton, which comes with PyTorch for CUDA on Linux."""

from importlib.util import find_spec

import torch
from torch import Tensor

TRITON = find_spec("triton") is not None


def usable(tensor: Tensor) -> bool:
    """On a GPU, in half precision."""
    return TRITON and tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)
