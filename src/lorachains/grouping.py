"""Which jobs of a multirun can be trained as one bank: those whose settings differ only in what a bank stacks."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorachains.run_folder import flat

STACKABLE = frozenset(
    {
        "seed", "data.order_seed", "data.seed", "data.task", "optim.lr", "optim.schedule", "optim.warmup",
        "adapter.lora_alpha",
    }
)  # fmt: skip
"""The settings that each adapter of a bank has its own of; so are the numbers among `optim.optimizer`'s."""

ROWS = frozenset({"data.seed", "data.task"})
"""Those of them that choose other rows."""

ABSENT = "absent"
"""What stands for the value of a setting that a job doesn't have."""

Settings = Mapping[str, Any]
"""The resolved settings of a job, nested, as `lorachains.cli.settings_of` gives them."""


def group(settings: Sequence[Settings]) -> list[list[int]]:
    """The jobs that can be trained as one bank.

    Returns:
        Groups of indices into `settings`: in each in ascending order, and the groups in the order of their first jobs.
    """
    groups: dict[Any, list[int]] = {}
    for index, job in enumerate(settings):
        groups.setdefault((frozenset(_shared(job).items()), index if why_alone(job) else None), []).append(index)
    return list(groups.values())


def why_alone(settings: Settings) -> str | None:
    """Why a job is trained in no bank with others; `None` if it can be."""
    if "adapter" not in settings["method"]:
        return f"method={settings['method']['_target_'].rsplit('.', 1)[-1]} has no adapters to be stacked"
    if "router_lr" in settings["method"]:
        return "routers belong to one run"
    if settings["knots"]["mode"] == "merge" and not ties_none(settings):  # COLA Algorithm 1, line 6
        return "knots.mode=merge changes the base (knots.mode=ledger doesn't)"
    if _watches_loss(settings):
        return "knots=plateau ties knots where a run's own loss stops improving"
    return None


def trunk(settings: Settings, others: Sequence[Settings]) -> int | None:
    """Which of the other jobs is the same but for knots, and ties none: up to the first knot the two are one run."""
    knots = settings["knots"]
    other_rank = knots["ranks"] is not None and knots["ranks"][0] != settings["adapter"]["r"]
    if ties_none(settings) or _watches_loss(settings) or knots["lr"] != "continue" or other_rank:
        return None
    shared = _without_knots(settings)
    same = (i for i, other in enumerate(others) if ties_none(other) and _without_knots(other) == shared)
    return next(same, None)


def lot(settings: Settings) -> str:
    """What is the same for jobs that save time together: those that can be a group, and what goes on from their trunk.

    Jobs of other rows are not among them, even where a bank could hold them: they are what can be divided.
    """
    shared = {
        key: value for key, value in _without_knots(settings).items() if key in ROWS or not _stackable(key, value)
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


def why_apart(a: Settings, b: Settings) -> list[str]:
    """The dotted settings that keep two jobs from being trained as one bank; none if they can be.

    Where a `_target_` differs, the settings that only one of the two classes has are left out.
    """
    one, other = _shared(a), _shared(b)
    keys = [key for key in one | other if one.get(key) != other.get(key)]
    return [
        key for key in _without_echoes(keys) if not (_of_one_class(key, keys) and not (key in one and key in other))
    ]


def differing(settings: Sequence[Settings]) -> dict[str, list[Any]]:
    """The dotted settings that aren't the same in all jobs, each with its distinct values in the jobs' order."""
    jobs = [flat(job) for job in settings]
    values = {key: _distinct(job.get(key, ABSENT) for job in jobs) for job in jobs for key in job}
    keys = [key for key, of_key in values.items() if len(of_key) > 1]
    return {key: values[key] for key in _without_echoes(keys)}


def told(values: Mapping[str, Sequence[Any]], most: int = 8) -> str:
    """`optim.lr (0.001, 0.0005), seed (0, 1, 2)`; of each setting at most so many values."""
    return ", ".join(f"{key} ({_some(of_key, most)})" for key, of_key in values.items())


def _shared(settings: Settings) -> dict[str, str]:
    """What the jobs of a group have in common: all settings as JSON, but for the values of the stackable ones."""
    # A vocabulary pruned to the rows of several runs isn't that of each alone.
    own_rows = ROWS if settings["model"].get("prune_vocab") else ()
    return {
        key: "" if _stackable(key, value) and key not in own_rows else json.dumps(value)
        for key, value in flat(settings).items()
    }


def ties_none(settings: Settings) -> bool:
    """Whether a job ties no knot."""
    knots = settings["knots"]
    plain = knots["_target_"] == "lorachains.knots.Knots" or knots.get("links") == 1
    return plain or settings["method"]["_target_"] == "lorachains.methods.Lora"


def _watches_loss(settings: Settings) -> bool:
    """Whether no knot is known before the training."""
    return settings["knots"]["_target_"] == "lorachains.plateau.Plateau" and not ties_none(settings)


def _without_knots(settings: Settings) -> dict[str, Any]:
    own = ("knots.", "method.knots", "method._target_")
    return {key: value for key, value in flat(settings).items() if not key.startswith(own)}


def _stackable(key: str, value: Any) -> bool:
    key = key.removeprefix("method.")  # a method's config repeats the groups that it is made of
    # A flag of an optimizer (nesterov, amsgrad) chooses another step; a number is only another factor in it.
    return key in STACKABLE or (key.startswith("optim.optimizer.") and _numeric(value))


def _numeric(value: Any) -> bool:
    return all(map(_numeric, value)) if isinstance(value, list) else type(value) in (int, float)


def _without_echoes(keys: Sequence[str]) -> list[str]:
    """Without the settings of the method that repeat others: `method.adapter.r` follows from `adapter.r`."""
    return [key for key in keys if not (key.startswith("method.") and key.removeprefix("method.") in keys)]


def _of_one_class(key: str, keys: Sequence[str]) -> bool:
    """Whether `key` belongs to a part of the config whose class is among the differing `keys`."""
    parts = key.split(".")
    return any(".".join([*parts[:depth], "_target_"]) in keys for depth in range(1, len(parts)))


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())


def _some(values: Sequence[Any], most: int) -> str:
    more = f", … {len(values)} values" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more
