"""COLA's theory (§4) on problems where every quantity of Theorem 4.1 is known: pure PyTorch, float64.

`problems` has the two problems, `frank_wolfe` Algorithm 2, the gap and the bound that holds, `links` COLA proper on the
same problems; `study` runs them side by side, `figure` draws what came out. docs/theory.md tells it in words.
"""

from lorachains.theory.frank_wolfe import Trace, bound, frank_wolfe, gap, linear_minimiser, step_size
from lorachains.theory.links import ChainTrace, train_chains
from lorachains.theory.problems import Completion, Logistic, Problem

__all__ = [
    "ChainTrace", "Completion", "Logistic", "Problem", "Trace",
    "bound", "frank_wolfe", "gap", "linear_minimiser", "step_size", "train_chains",
]  # fmt: skip
