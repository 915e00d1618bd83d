"""`python -m lorachains.evaluate run=DIR`: scores a run, a PEFT adapter (`adapter=DIR`) or a bare model on any task."""

import json
import sys
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.corpus import prune_to, settle
from lorachains.data import Serving, TaskDataModule
from lorachains.data.demonstrations import check_number, demonstrated
from lorachains.errors import LorachainsError
from lorachains.evaluation import candidate_losses, generate, generator, predict, summarise
from lorachains.loading import attach_adapter
from lorachains.models import LanguageModel
from lorachains.of_run import split_arguments, take_from_run
from lorachains.packing import packs
from lorachains.routing import Routing
from lorachains.run_folder import RunFolder
from lorachains.scoring import answer_losses


def evaluate(cfg: DictConfig) -> None:
    """Prints the metrics of one split as JSON, and keeps them and the predictions in `output` if that is given."""
    if cfg.split not in ("val", "test"):
        raise LorachainsError(f"split is {cfg.split!r}: choose val or test")
    base = instantiate(cfg.model)
    data = _data(cfg, base)
    if base.prune_vocab:
        base, before = prune_to(base, [data]), data
        data = _data(cfg, base)
        base = settle(base, [before], [data])
    routing = attach_adapter(base, Path(cfg.adapter)).routing if cfg.adapter else Routing()
    positions = getattr(base.model.config, "max_position_embeddings", None)
    check_number("demonstrations", cfg.demonstrations)
    if base.pruned and cfg.demonstrations:
        raise LorachainsError("model.prune_vocab keeps the tokens of single rows: set it to false, or demonstrations=0")
    data, _ = demonstrated(data, cfg.demonstrations, cfg.seed, positions)
    data.check_fits(positions)
    data.serve(Serving(), by_length=not packs(base.model))
    loader = data.val_dataloader() if cfg.split == "val" else data.test_dataloader()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = base.model.eval().to(device)
    continue_ = generator(base, routing, device.type == "cuda", data.stop)
    predictions = []
    for batch in track(loader, f"{cfg.split} rows", transient=True, console=Console(stderr=True)):
        here = batch.to(device)
        with torch.no_grad():
            losses = candidate_losses(here.scored, answer_losses(model, here.scored)).tolist()
        texts = generate(continue_, base.tokenizer, here.prompts, data.max_new_tokens) if here.prompts else []
        predictions += predict(here, losses, texts, [data.tasks])
    metrics = {f"{cfg.split}/{key}": value for key, value in summarise(predictions, data.tasks).items()}
    print(json.dumps(metrics, indent=2))
    if cfg.output:
        folder = RunFolder(Path(cfg.output))
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_predictions(predictions)
        folder.write_metrics(metrics)


def _data(cfg: DictConfig, base: LanguageModel) -> TaskDataModule:
    data: TaskDataModule = instantiate(cfg.data, tokenizer=base.tokenizer)
    data.setup("test")
    return data


def main() -> None:
    """The command line. With `run=DIR`, what is said of `model.` and `data.` changes the run's own settings."""
    sys.argv[1:], changes = split_arguments(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
    @one_line_errors
    def command(cfg: DictConfig) -> None:
        if cfg.run:
            take_from_run(cfg, RunFolder(Path(cfg.run)), changes)
        evaluate(cfg)

    command()


if __name__ == "__main__":
    main()
