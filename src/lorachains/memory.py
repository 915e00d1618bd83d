"""Peak memory of this process, on its accelerator or else on the host."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a CUDA device, or the process's largest resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
