"""`python -m lorachains.evaluate run=DIR`: scores a run, a mixture made of one (`mixture=DIR`), a PEFT adapter
(`adapter=DIR`) or a bare model on any task.

It is the method's own test, over what the method has saved: of the same rows it gives a run's own metrics.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lorachains.cli import one_line_errors, quick_imports
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.run_folder import RunFolder

with quick_imports():
    import torch
    from lightning.pytorch.callbacks import RichProgressBar

    from lorachains.data.module import TaskDataModule
    from lorachains.data.runs import RunsDataModule
    from lorachains.evaluation import summarise
    from lorachains.jobs import Job, loaded, stack
    from lorachains.loading import attach_adapter
    from lorachains.methods import Method
    from lorachains.of_run import SECTIONS, split_arguments, take_from_run
    from lorachains.peft_format import CONFIG, read_config
    from lorachains.trainer import Trainer


def evaluate(cfg: DictConfig) -> None:
    """Prints the metrics of one split as JSON, and keeps them, the predictions and pictures in `output` if given."""
    _check(cfg)
    method, data = _built(cfg)
    trainer = Trainer(
        accelerator=_device().type, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[RichProgressBar(console_kwargs={"stderr": True})],
    )  # fmt: skip
    trainer.test(method, RunsDataModule([data]), verbose=False)
    method.model.eval()
    [predictions] = method.predictions["test"]
    output = RunFolder(Path(cfg.output)) if cfg.output else None
    found = {f"test/{key}": value for key, value in summarise(predictions, data.tasks).items()}
    found |= method.report(0, output.path if output else None)
    metrics = {f"{cfg.split}/{key.removeprefix('test/')}": value for key, value in found.items()}
    print(json.dumps(metrics, indent=2))
    if output:
        output.write_predictions(prediction.row() for prediction in predictions)
        output.write_metrics(metrics)


def _check(cfg: DictConfig) -> None:
    if cfg.split not in ("val", "test"):
        raise LorachainsError(f"split is {cfg.split!r}: choose val or test")
    if cfg.mixture is not None and "decision" not in cfg.method:
        raise LorachainsError(
            f"mixture is {cfg.mixture}: give with it run=DIR, of the run of method=moa it is made of, and no adapter"
        )
    if cfg.demonstrations and "demonstrations" not in cfg.method:
        raise LorachainsError(
            f"demonstrations is {cfg.demonstrations}, but {cfg.run} has no single adapter: set it to 0"
        )
    if cfg.output:
        if RunFolder(Path(cfg.output)).config.is_file():
            raise LorachainsError(f"output is {cfg.output}, a run's folder with metrics of its own: choose another")
        Path(cfg.output).mkdir(parents=True, exist_ok=True)  # what can't be written is known before it is computed


def _built(cfg: DictConfig) -> tuple[Method, TaskDataModule]:
    """The method with what it has saved, and its data with the split in the place of the test rows."""
    run = RunFolder(Path(cfg.run or "."))
    base, data, [partial] = loaded([Job(cfg, run)])
    base.model.eval().to(_device())
    if "demonstrations" in cfg.method:
        if cfg.adapter:
            attach_adapter(base, Path(cfg.adapter))
        method = stack([partial], base)
    else:
        adapters = Path(cfg.mixture) if cfg.mixture else run.adapters if run.adapters.is_dir() else run.path
        if "adapter" in cfg.method:
            saved = read_config(next(adapters.glob(f"*/{CONFIG}"), adapters / CONFIG).parent)
            partial.keywords["adapter"] = replace(saved, alora_invocation_tokens=None)  # routes activate adapters
        method = stack([partial], base)
        method.load(adapters)
    [read] = method.reads(data).runs
    return method, read.with_rows({"test": read.rows(cfg.split)}, read.tasks)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """The command line. With `run=DIR`, what is said of `model.`, `data.` and `method.` changes the run's settings."""
    sys.argv[1:], changes = split_arguments(sys.argv[1:], (*SECTIONS, "method"))

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
    @one_line_errors
    def command(cfg: DictConfig) -> None:
        if cfg.run:
            take_from_run(cfg, RunFolder(Path(cfg.run)), changes)
        evaluate(cfg)

    command()


if __name__ == "__main__":
    main()
