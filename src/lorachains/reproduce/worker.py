"""`lorachains.train`, as `lorachains.reproduce` starts it: ends with the process that started it, however that ends."""

import os
import signal
import threading

from lorachains.train import main


def end_with_parent() -> None:
    """Waits for the parent's end of the pipe to close (nothing comes through it), and ends this process's group."""
    os.read(0, 1)  # not sys.stdin's, whose lock would be held when the interpreter ends
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    main()
