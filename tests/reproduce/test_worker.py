"""A worker ends with the process that started it: in order, though a shell's background jobs ignore Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path

ENDLESS = [
    "model=tiny", "method=lora", "data.train_size=8", "data.val_size=1", "data.test_size=1",
    "trainer.max_epochs=100000", "trainer.accelerator=cpu", "hydra.run.dir=run",
]  # fmt: skip


def test_it_is_interrupted_not_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "lorachains.reproduce.worker", *ENDLESS], cwd=tmp_path, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as worker:  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        until = next((line for line in worker.stdout if "epoch 1 of" in line), None)
        assert until is not None
        worker.stdin.close()
        said = worker.stdout.read()
    assert worker.returncode not in (0, -signal.SIGKILL)
    assert "interrupted after optimizer step" in said
