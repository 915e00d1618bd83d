"""`python -m lorachains.moa add|remove|replace run=DIR name=… output=DIR`: experts of a trained mixture, one by one."""

import sys
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.mixture_format import read_routers, write_card
from lorachains.models import LanguageModel
from lorachains.of_run import split_arguments, take_from_run
from lorachains.run_folder import RunFolder
from lorachains.surgery import fit_expert, judged, put_in, table, take_out

COMMANDS = ("add", "remove", "replace")


def operate(command: str, cfg: DictConfig) -> None:
    """Writes the new mixture to `output`, and prints what it and the old one do with each domain."""
    folder, output = Path(cfg.mixture or RunFolder(Path(cfg.run)).adapters), Path(cfg.output)
    check(command, cfg, folder)
    base = _base(cfg)
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    data.setup("test")
    before = judged(base, folder, data, cfg.split)
    if command == "remove":
        about = take_out(folder, cfg.name, output)
    else:
        about = put_in(folder, cfg.name, Path(cfg.adapter), output)
        fit_expert(_base(cfg), output, cfg.name, data, cfg.rows)
    after = judged(_base(cfg), output, data, cfg.split)
    write_card(output, about, {f"test/{key}": value for key, value in after.items()})
    print(table(before, after))


def check(command: str, cfg: DictConfig, folder: Path) -> None:
    """Raises a LorachainsError for what can't be done, before anything is computed."""
    names = read_routers(folder)[0].names
    if command != "remove" and cfg.adapter is None:
        raise LorachainsError(f"{command} needs the expert: give adapter=DIR, a PEFT adapter")
    if (cfg.name in names) == (command == "add"):
        there = "already" if command == "add" else "not"
        raise LorachainsError(f"name={cfg.name} is {there} among the mixture's experts: {', '.join(names)}")
    if cfg.split not in ("val", "test"):
        raise LorachainsError(f"split is {cfg.split!r}: choose val or test")
    if Path(cfg.output).exists():
        raise LorachainsError(f"output={cfg.output} is there already: give a folder that is not")


def _base(cfg: DictConfig) -> LanguageModel:
    base: LanguageModel = instantiate(cfg.model)
    base.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return base


def main() -> None:
    """The command line. What is said of `model.` and `data.` changes the run's own settings."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"error: give a command: python -m lorachains.moa {'|'.join(COMMANDS)} …", file=sys.stderr)
        sys.exit(1)
    sys.argv[1:], changes = split_arguments(sys.argv[2:])

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="moa")
    @one_line_errors
    def command(cfg: DictConfig) -> None:
        given = cfg.adapter
        take_from_run(cfg, RunFolder(Path(cfg.run)), changes)
        cfg.adapter = given  # not the run's
        operate(name, cfg)

    command()


if __name__ == "__main__":
    main()
