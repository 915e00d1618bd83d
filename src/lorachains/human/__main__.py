"""`python -m lorachains.human make …` writes blind sheets, `python -m lorachains.human read …` reads filled ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from lorachains.answers import read_answers
from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError, check_switch
from lorachains.human.reading import read_sheets, summarise
from lorachains.human.sheets import make_sheets, write_sheets
from lorachains.run_folder import write_whole


def make(cfg: DictConfig) -> None:
    """Draws prompts that all systems have answered, and writes a sheet for each annotator."""
    folder = Path(cfg.output)
    if not OmegaConf.is_dict(cfg.systems):
        raise LorachainsError(f"systems is {cfg.systems!r}: give names and files, as systems={{a:FILE,b:FILE}}")
    systems = {str(name): read_answers(Path(_file(file, f"systems.{name}"))) for name, file in cfg.systems.items()}
    check_switch("same_prompts", cfg.same_prompts)
    if type(cfg.seed) is not int:
        raise LorachainsError(f"seed is {cfg.seed!r}: give a whole number")
    items = make_sheets(systems, cfg.annotators, cfg.prompts, cfg.seed, cfg.same_prompts)
    write_sheets(folder, items)
    print(f"{folder}/sheets holds a sheet for each annotator; {folder}/key.json is for nobody who rates")


def read(cfg: DictConfig) -> None:
    """Prints the systems' rates and the annotators' agreement as JSON, and writes them to `output` if that is given."""
    if not OmegaConf.is_list(cfg.sheets):
        raise LorachainsError(f"sheets is {cfg.sheets!r}: give the filled sheets, as sheets=[FILE,FILE]")
    if cfg.output and Path(cfg.output).is_dir():
        raise LorachainsError(f"output={cfg.output} is a folder: give a file")
    sheets = [Path(_file(sheet, "sheets")) for sheet in cfg.sheets]
    summary = json.dumps(summarise(read_sheets(sheets, Path(cfg.key))), indent=2)
    print(summary)
    if cfg.output:
        Path(cfg.output).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(cfg.output), summary + "\n")


def _file(name: object, key: str) -> str:
    if not isinstance(name, str):
        raise LorachainsError(f"{key} is {name!r}: give a file")
    return name


COMMANDS: dict[str, Callable[[DictConfig], None]] = {"make": make, "read": read}


def main() -> None:
    """The command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print("error: give a command: python -m lorachains.human make …, or read …", file=sys.stderr)
        sys.exit(1)
    del sys.argv[1]
    command = one_line_errors(COMMANDS[name])
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=f"human_{name}")(command)()


if __name__ == "__main__":
    main()
