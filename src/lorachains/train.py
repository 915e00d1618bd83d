"""`python -m lorachains.train method=cola …`: trains, tests and saves one run. See `conf/train.yaml`."""

import logging
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig

from lorachains.cli import check_settings, one_line_errors, quick_imports, settings_of
from lorachains.config import conf_dir
from lorachains.run_folder import RunFolder

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """One run, from the config to `metrics.json`."""
    check_settings(cfg)
    hydra_cfg: Any = HydraConfig.get()  # typed as its dataclasses, but it is OmegaConf's nodes
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    if cfg.resume and folder.finished(settings_of(cfg)):
        log.info("%s is finished: nothing to resume", folder.path)
        return
    with quick_imports():  # not at the top: a wrong setting, or `--cfg job`, needn't wait for them
        from lorachains.jobs import Job, train_jobs
    configure_log(hydra_cfg.job_logging, hydra_cfg.verbose)  # once more: Lightning's import sets levels of its own
    (outcome,) = train_jobs([Job(cfg, folder)])
    if isinstance(outcome, Exception):
        raise outcome
    shown = (key for key in outcome if key.startswith(("test", "val")) and "/block/" not in key)
    log.info("%s", ", ".join(f"{key} {outcome[key]:.4g}" for key in shown))
    log.info("%s", folder.path)


if __name__ == "__main__":
    main()
