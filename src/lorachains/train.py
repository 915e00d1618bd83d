"""`python -m lorachains.train method=cola …`: trains, tests and saves one run. See `conf/train.yaml`."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig

from lorachains.cli import check_settings, one_line_errors, settings_of
from lorachains.config import conf_dir
from lorachains.loggers import finishing
from lorachains.memory import reset_peak
from lorachains.run_folder import RunFolder
from lorachains.session import Session

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """One run, from the config to `metrics.json`."""
    check_settings(cfg)
    folder, settings = RunFolder(Path(HydraConfig.get().runtime.output_dir)), settings_of(cfg)
    if cfg.resume and folder.finished(settings):
        log.info("%s is finished: nothing to resume", folder.path)
        return
    checkpoint = folder.begin(settings, cfg.resume, cfg.overwrite)
    reset_peak()
    seed_everything(cfg.seed, verbose=False)
    base = instantiate(cfg.model)
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    method = instantiate(cfg.method, base=base)
    with finishing(instantiate(cfg.logger), settings) as logger:
        session = Session(method, data, folder, logger, cfg.checkpoint_every)
        session.fit(instantiate(cfg.trainer, logger=logger, callbacks=session.callbacks), checkpoint)
        metrics = session.finish()
    log.info("%s", ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith(("test", "val"))))
    log.info("%s", folder.path)


if __name__ == "__main__":
    main()
