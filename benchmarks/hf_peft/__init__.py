"""The other side of the benchmarks: HF Trainer + PEFT as a competent user runs them, without our banks and methods.

Each function returns a dict of plain values: times in seconds of wall time, losses in nats an answer token. Steps are
timed by CUDA events that are read when all is done: measuring never makes the host wait.

`settings` is "default" (Trainer's own), "best" or "liger" (`settings.py`). Both of these allow TF32, and "liger" has
liger-kernel's kernels in place of transformers', for the rest of the process. The weights' precision is the caller's.

`train`, `run` and `mixed_training_step` work on the model given and take their adapters out again; it stays frozen, on
`device`. `generate`, `xlora_generate` and `xlora_step` work on a copy. All drop what `torch.compile` has compiled in
this process so far.
"""

import contextlib
import sys

with contextlib.redirect_stdout(sys.stderr):  # importing the Trainer says how W&B is set; ours is to be JSON alone
    from hf_peft.adapters import named
    from hf_peft.generation import generate, xlora_generate
    from hf_peft.runs import accuracy, run
    from hf_peft.steps import mixed_training_step, xlora_step
    from hf_peft.training import train

__all__ = ["accuracy", "generate", "mixed_training_step", "named", "run", "train", "xlora_generate", "xlora_step"]
