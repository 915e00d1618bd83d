"""`hydra/launcher=replicas`: trains the jobs of a multirun that can be stacked as one bank, in the time of about one.

`hydra/sweeper=product`, the default of `lorachains.train`, is Hydra's own, which leaves it to that launcher to check
the jobs.

Hydra imports this module at each start, of other programs too: so nothing heavy, and nothing of lorachains, at its top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ReplicasConf:
    """The launcher's settings, `hydra.launcher`.

    Attributes:
        group_size: at most so many jobs as one bank; null: as many as memory holds.
        submitit: null, or a mapping with the parameters of `submitit.AutoExecutor` (`cluster`, `folder`, `timeout_min`,
            `gpus_per_node`, …): each group is then a job of the cluster.
    """

    _target_: str = "hydra_plugins.lorachains_replicas.replicas.ReplicasLauncher"
    _convert_: str = "all"
    group_size: int | None = None
    submitit: Any = None  # a typed mapping can't be overridden as a whole


@dataclass
class ProductConf(BasicSweeperConf):
    """The sweeper's settings, `hydra.sweeper`: those of Hydra's basic one."""

    _target_: str = "hydra_plugins.lorachains_replicas.replicas.ProductSweeper"


ConfigStore.instance().store(group="hydra/launcher", name="replicas", node=ReplicasConf, provider="lorachains")
ConfigStore.instance().store(group="hydra/sweeper", name="product", node=ProductConf, provider="lorachains")


class ReplicasLauncher(Launcher):
    """Trains the jobs in groups.

    Of the program that is swept only the config counts: it has to be that of `lorachains.train`. Hydra's own job
    callbacks see how a job is prepared, not how it is trained.
    """

    def __init__(self, group_size: int | None, submitit: Mapping[str, Any] | None):
        self.group_size, self.submitit = group_size, submitit

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Prepares all jobs, then trains them group after group: what became of each, in the jobs' order.

        Raises what Hydra raises for a job that can't be composed.
        """
        from lorachains.cli import quick_imports
        from lorachains.composing import Compositions

        compose = Compositions(partial(self.hydra_context.config_loader.load_sweep_config, self.config))
        configs = [compose.config(overrides) for overrides in job_overrides]  # all, before the first leaves a folder
        with quick_imports():
            from hydra_plugins.lorachains_replicas._launch import launch

        return launch(self, job_overrides, configs, initial_job_idx)


class ProductSweeper(BasicSweeper):
    """Hydra's basic sweeper, but that it doesn't compose the jobs to check them: the launcher does before it trains."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """For other launchers, raises what Hydra raises for a job that can't be composed."""
        if not isinstance(self.launcher, ReplicasLauncher):
            super().validate_batch_is_legal(batch)
