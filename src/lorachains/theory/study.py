"""What `python -m lorachains.theory` computes: Algorithm 2 beside its bound, COLA beside LoRA, over several seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lorachains.errors import LorachainsError
from lorachains.theory.frank_wolfe import bound, frank_wolfe, step_size
from lorachains.theory.links import ChainTrace, train_chains
from lorachains.theory.problems import Problem

MakeProblem = Callable[..., Problem]
"""A problem but for its seeds: `make(seeds=[0, 1])`."""


def check_settings(settings: dict[str, Any]) -> None:
    """Checks the config's settings that are no problem's.

    Raises:
        LorachainsError: names the setting, its value, and what is expected.
    """
    walk, chains = settings["frank_wolfe"], settings["chains"]
    _check_whole("seeds", settings["seeds"], 0)
    _check_whole("chains.tuning_seeds", chains["tuning_seeds"], 0)
    _check_whole("frank_wolfe.steps", walk["steps"], 1)
    _check_whole("frank_wolfe.batches", [size for size in walk["batches"] if size != "T"] or [1], 1, "or T")
    if walk["iterations"] is not None:
        _check_whole("frank_wolfe.iterations", [walk["iterations"]], 1, "or null")
    for key in ("ranks", "links"):
        _check_whole(f"chains.{key}", chains[key], 1)
    for key in ("steps", "batch", "every"):
        _check_whole(f"chains.{key}", [chains[key]], 1)
    if max(chains["links"]) > chains["steps"]:
        raise LorachainsError(
            f"chains.links is {chains['links']}, but chains.steps is {chains['steps']}, and each link needs a step: "
            "give fewer links, or more steps"
        )
    if not chains["rates"] or not all(isinstance(rate, int | float) and rate > 0 for rate in chains["rates"]):
        raise LorachainsError(f"chains.rates is {chains['rates']!r}: give learning rates above 0")
    if shared := set(settings["seeds"]) & set(chains["tuning_seeds"]):
        raise LorachainsError(f"chains.tuning_seeds and seeds share {sorted(shared)}: tune on seeds of their own")


def frank_wolfe_rows(
    make: MakeProblem, seeds: Sequence[int], steps: Sequence[int], batches: Sequence[Any], iterations: int | None
) -> list[dict[str, Any]]:
    """One row for each M (over the ball, as the paper; at the start), batch and T; means over the seeds.

    `average_gap` stays below `bound` + `average_slack` in every run (`holds`: in how many it did), and with an exact
    oracle in the mean over minibatches also below `bound` + `expected_slack`.
    """
    problem = make(seeds=seeds)
    falls = {"ball": problem.ceiling, "start": problem.loss(problem.zeros())}
    return [
        {"M": kind, "batch": batch, "T": horizon} | _walk(problem, fall, horizon, batch, iterations)
        for kind, fall in falls.items()
        for batch in batches
        for horizon in steps
    ]


def _walk(problem: Problem, fall: Tensor, steps: int, batch: Any, iterations: int | None) -> dict[str, Any]:
    size = steps if batch == "T" else batch
    eta = step_size(fall, problem.smoothness, problem.diameter, steps)
    trace = frank_wolfe(problem, steps, eta, size, iterations)
    limit = bound(fall, problem.smoothness, problem.diameter, steps, eta)
    average, slack = trace.gaps.mean(1), trace.slacks.mean(1)
    means = {
        "step_size": eta,
        "average_gap": average,
        "average_slack": slack,
        "bound": limit,
        "expected_slack": problem.diameter * (problem.variance / size).sqrt(),
        "last_loss": trace.losses[:, -1],
        "last_gap": trace.gaps[:, -1],
    }
    return {key: float(value.mean()) for key, value in means.items()} | {"holds": int((average <= limit + slack).sum())}


def chain_rows(
    make: MakeProblem,
    seeds: Sequence[int],
    *,
    ranks: Sequence[int],
    links: Sequence[int],
    rates: Sequence[float],
    tuning_seeds: Sequence[int],
    **training: int,
) -> list[dict[str, Any]]:
    """One row for each rank and chain length, at its own best learning rate; losses and gaps are means over the seeds.

    `better`, `better_test`: in how many seeds the last (test) loss is below that of the rank's first number of links,
    `than`.
    """
    rows = []
    for rank in ranks:
        tuned = [_tuned(make, seeds, rates, tuning_seeds, rank=rank, links=length, **training) for length in links]
        first = tuned[0][1]
        for length, (rate, trace) in zip(links, tuned, strict=True):
            better = {
                "than": links[0],
                "better": int((trace.losses[:, -1] < first.losses[:, -1]).sum()),
                "better_test": int((trace.test_losses[:, -1] < first.test_losses[:, -1]).sum()),
            }
            rows.append({"rank": rank, "links": length, "rate": rate} | better | _of(trace))
    return rows


def _tuned(
    make: MakeProblem, seeds: Sequence[int], rates: Sequence[float], tuning_seeds: Sequence[int], **training: Any
) -> tuple[float, ChainTrace]:
    """The rate of the lowest mean last loss over the tuning seeds, and what the seeds do at it."""
    tried = torch.tensor(rates, dtype=torch.float64)
    problem = make(seeds=list(tuning_seeds) * len(rates))
    trace = train_chains(problem, rates=tried.repeat_interleave(len(tuning_seeds)), **training)
    last = trace.losses[:, -1].view(len(rates), -1).mean(1)
    if not last.isfinite().any():
        raise LorachainsError(f"chains.rates is {list(rates)}: every one of them diverges, give lower ones")
    best = tried[last.argmin()]
    return float(best), train_chains(make(seeds=seeds), rates=best.expand(len(seeds)), **training)


def _of(trace: ChainTrace) -> dict[str, Any]:
    return {
        "last_loss": float(trace.losses[:, -1].mean()),
        "last_loss_std": float(trace.losses[:, -1].std(correction=min(1, len(trace.losses) - 1))),
        "last_test_loss": float(trace.test_losses[:, -1].mean()),
        "last_gap": float(trace.gaps[:, -1].mean()),
        "trace_norm": float(trace.trace_norms[:, -1].mean()),
        "steps": list(trace.steps),
        "losses": _short(trace.losses),
        "gaps": _short(trace.gaps),
    }


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.mean(0)]


def _check_whole(key: str, values: object, least: int, also: str = "") -> None:
    if not isinstance(values, list) or not values or any(type(value) is not int or value < least for value in values):
        shown = values[0] if isinstance(values, list) and len(values) == 1 else values
        raise LorachainsError(f"{key} is {shown!r}: give whole numbers of at least {least} {also}".rstrip())
