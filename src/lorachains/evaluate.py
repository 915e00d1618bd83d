"""`python -m lorachains.evaluate run=DIR`: scores a run, a PEFT adapter (`adapter=DIR`) or a bare model on any task."""

import json
import logging
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.evaluation import predict, summarise
from lorachains.loading import attach_adapter
from lorachains.run_folder import RunFolder

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """Prints the metrics of one split as JSON, and keeps them and the predictions in `output` if that is given."""
    if cfg.run:
        _take_from_run(cfg, RunFolder(Path(cfg.run)), HydraConfig.get().overrides.task)
    base = instantiate(cfg.model)
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    if cfg.adapter:
        attach_adapter(base, Path(cfg.adapter))
    data.setup("test")
    data.check_fits(getattr(base.model.config, "max_position_embeddings", None))
    loader = {"val": data.val_dataloader, "test": data.test_dataloader}[cfg.split]()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = base.model.eval().to(device)
    batches = track(loader, f"{cfg.split} rows", transient=True)
    answers = [predict(model, base.tokenizer, b.to(device), data.tasks, data.max_new_tokens) for b in batches]
    predictions = [prediction for batch in answers for prediction in batch]
    metrics = {f"{cfg.split}/{key}": value for key, value in summarise(predictions, data.tasks).items()}
    print(json.dumps(metrics, indent=2))
    if cfg.output:
        folder = RunFolder(Path(cfg.output))
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_predictions(predictions)
        folder.write_metrics(metrics)


def _take_from_run(cfg: DictConfig, run: RunFolder, overrides: list[str]) -> None:
    """Model, data and adapter of the run, but for what the command line says of them.

    Raises:
        LorachainsError: the folder holds no run, or an unfinished one.
    """
    run.read_metrics()
    before = OmegaConf.load(run.config)
    given = OmegaConf.from_dotlist([item for item in overrides if item.startswith(("model.", "data."))])
    chosen = {item.partition("=")[0] for item in overrides}
    for section in {"model", "data"} - chosen:
        cfg[section] = OmegaConf.merge(before[section], given.get(section, {}))  # type: ignore[index]
    cfg.adapter = cfg.adapter or str(run.adapter)


if __name__ == "__main__":
    main()
