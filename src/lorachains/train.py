"""`python -m lorachains.train method=cola …`: trains, tests and saves one run. See `conf/train.yaml`."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lorachains.cli import check_settings, one_line_errors, quick_imports, settings_of
from lorachains.config import conf_dir

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """One run, from the config to `metrics.json`."""
    with quick_imports():  # not at the top: a wrong setting, or `--cfg job`, needn't wait for them
        from lorachains.jobs import Job, train_jobs
        from lorachains.run_folder import RunFolder
    check_settings(cfg)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    if cfg.resume and folder.finished(settings_of(cfg)):
        log.info("%s is finished: nothing to resume", folder.path)
        return
    (outcome,) = train_jobs([Job(cfg, folder)])
    if isinstance(outcome, Exception):
        raise outcome
    shown = (key for key in outcome if key.startswith(("test", "val")) and "/block/" not in key)
    log.info("%s", ", ".join(f"{key} {outcome[key]:.4g}" for key in shown))
    log.info("%s", folder.path)


if __name__ == "__main__":
    main()
