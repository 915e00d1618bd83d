"""Composing the configs of many jobs, which Hydra would compose one by one in some tenths of a second each."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

NUMBERS = ("seed", "optim.lr")
"""What most jobs of a sweep differ in. No choice in a defaults list depends on them."""


def quoted(text: str) -> str:
    """A value of an override that Hydra reads as this text, whatever is in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


@cache
def parsed(override: str) -> Override:
    """The override as Hydra reads it, once for all jobs that have it. Raises an OverrideParseException."""
    [one] = OverridesParser.create().parse_overrides([override])
    return one


class Compositions:
    """The configs of jobs; of those that differ in nothing but plain values of `NUMBERS`, Hydra composes one.

    Each other one is a copy of it, in which Hydra sets the job's own numbers; it equals what Hydra composes.
    Environment variables, the working directory and the time in it are those of the first.

    Args:
        compose: composes a job's config by its overrides, with the node `hydra`.
    """

    def __init__(self, compose: Callable[[list[str]], DictConfig]):
        self._compose = compose
        self._known: dict[tuple[str, ...], DictConfig] = {}

    def config(self, overrides: Sequence[str]) -> DictConfig:
        """A config of the job's own. Raises what `compose` raises."""
        try:
            job = [parsed(override) for override in overrides]
        except OverrideParseException:
            return self._compose(list(overrides))  # tells it in its own words
        plain = [_is_plain(override, job) for override in job]
        if not any(plain):
            return self._compose(list(overrides))
        # A key alone is no override, so it can stand for those of any value.
        others = tuple(
            o.key_or_group if is_plain else line for o, is_plain, line in zip(job, plain, overrides, strict=True)
        )
        if others in self._known:
            return _with_numbers(self._known[others], job)
        config = self._compose(list(overrides))
        if not any(key in config.hydra.runtime.choices for key in NUMBERS):
            self._known[others] = deepcopy(config)
        return config


def _is_plain(override: Override, job: Sequence[Override]) -> bool:
    """Whether it sets one of `NUMBERS` to a number, and nothing else of the job changes or reads it on the way."""
    key = override.key_or_group
    return (
        key in NUMBERS
        and override.type == OverrideType.CHANGE
        and override.package is None
        and type(override.value()) in (int, float)
        and sum(_sets(other, key) for other in job) == 1
        and not any(other.is_delete() for other in job)  # `~key=value` compares values
    )


def _sets(override: Override, key: str) -> bool:
    """Whether it sets the key, or what holds it (but by a choice, over which each key's own override wins)."""
    own = override.key_or_group
    holds = key.startswith(f"{own}.") and not isinstance(override.value(), str)
    return holds or own == key or own.startswith(f"{key}.")


def _with_numbers(composed: DictConfig, job: Sequence[Override]) -> DictConfig:
    """A copy with all that Hydra's `ConfigLoaderImpl` derives from the job's own numbers."""
    config = deepcopy(composed)
    app = [override for override in job if not override.is_hydra_override()]
    task, hydra_job = config.hydra.overrides.task, config.hydra.job
    for index, override in enumerate(app, len(task) - len(app)):
        if override.key_or_group in NUMBERS:
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
            task[index] = override.input_line
    named = hydra_job.config.override_dirname
    hydra_job.override_dirname = get_overrides_dirname(
        app, exclude_keys=named.exclude_keys, item_sep=named.item_sep, kv_sep=named.kv_sep
    )
    return config
