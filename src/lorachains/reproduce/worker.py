"""`lorachains.train`, as `lorachains.reproduce` starts it: ends with the process that started it, however that ends."""

import os
import signal
import threading
import time

from lorachains.train import main

GRACE = 5.0
"""Seconds to end in order. Killed amid its work on a GPU, a process can take down others with which it shares the GPU
through CUDA's multi-process service."""


def end_with_parent() -> None:
    """Waits for the parent's end of the pipe to close (nothing comes through it), and ends this process's group."""
    os.read(0, 1)  # not sys.stdin's, whose lock would be held when the interpreter ends
    group = os.getpgid(0)
    os.killpg(group, signal.SIGINT)
    time.sleep(GRACE)
    os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    threading.Thread(target=end_with_parent, daemon=True).start()
    main()
