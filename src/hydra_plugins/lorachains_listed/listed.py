"""`hydra/sweeper=listed`: a multirun of the jobs that a file lists, where they are no product of settings.

Hydra imports this module at each start, of other programs too: so nothing heavy, and nothing of lorachains, at its top.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig


@dataclass
class ListedConf:
    """The sweeper's settings, `hydra.sweeper`.

    Attributes:
        file: JSON: of each job a list of its overrides.
    """

    _target_: str = "hydra_plugins.lorachains_listed.listed.ListedSweeper"
    file: str = MISSING


ConfigStore.instance().store(group="hydra/sweeper", name="listed", node=ListedConf, provider="lorachains")


class ListedSweeper(Sweeper):
    """Launches all jobs at once, and leaves in the folder of one that failed the reason, in `failure.txt`."""

    def __init__(self, file: str):
        self.file = Path(file)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """What became of each job; raises the first error after the last job."""
        jobs = [[*arguments, *job] for job in json.loads(self.file.read_text(encoding="utf-8"))]
        returns: Sequence[JobReturn] = self.launcher.launch(jobs, initial_job_idx=0)
        for job in returns:
            if job.status == JobStatus.FAILED:
                _note(job)
        for job in returns:
            _ = job.return_value  # of a failed one raises its error
        return [returns]


def _note(job: JobReturn) -> None:
    from lorachains.run_folder import RunFolder, write_whole

    assert job.hydra_cfg is not None
    cause = str(job._return_value).removeprefix("error in job ").partition(": ")[2] or repr(job._return_value)
    write_whole(RunFolder(Path(job.hydra_cfg.hydra.runtime.output_dir)).failure, " ".join(cause.split()) + "\n")
