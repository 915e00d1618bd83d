"""Memory of a run, on its accelerator or else of the process on the host: its peak, its end, and a graph's own."""

import contextlib
import gc
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Forgets the peak so far, and frees what an earlier run of this process has left."""
    gc.collect()
    _set_imports_aside()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then the process's
        _CLEAR.write_text("5")  # resets the resident set's high-water mark: proc(5)


@cache
def _set_imports_aside() -> None:
    """Keeps what was imported before the first run from being looked through again: that takes tenths of a second."""
    gc.freeze()


def peak_memory(device: torch.device) -> int | None:
    """Bytes since `reset_peak`: the most that was asked of the CUDA allocator, or the largest resident set on Linux.

    What was asked for, since the allocator's own blocks are up to 1 MiB larger each, by chance of what was free.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_stats(device)["requested_bytes.all.peak"])
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    return int(found[1]) * 1024 if found else None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of an accelerator ran out: the allocator's, or, of CUDA itself, that which others have left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, torch.AcceleratorError) and "out of memory" in str(error)
    )


@contextlib.contextmanager
def own_workspaces() -> Iterator[None]:
    """Within, a CUDA graph is recorded with workspaces of cuBLAS that are its own.

    Those at hand don't outlive it: Lightning frees them after each fit or test, as does the next recording. What lies
    there then a replay would overwrite, and a GPU where nothing does stops.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
