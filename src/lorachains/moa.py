"""`python -m lorachains.moa add|remove|replace run=DIR name=… output=DIR`: experts of a trained mixture, one by one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from lorachains.cli import one_line_errors, quick_imports
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError, check_positive
from lorachains.run_folder import RunFolder

with quick_imports():
    import torch

    from lorachains.data.instructions import check_label
    from lorachains.mixture_format import read_routers, write_card
    from lorachains.models import LanguageModel
    from lorachains.of_run import split_arguments, take_from_run
    from lorachains.surgery import check_domains, fit_expert, judged, put_in, table, take_out

COMMANDS = ("add", "remove", "replace")


def operate(command: str, cfg: DictConfig) -> None:
    """Writes the new mixture to `output`, and prints what it and the old one do with each domain."""
    folder, output, name = Path(cfg.mixture or RunFolder(Path(cfg.run)).adapters), Path(cfg.output), cfg.name
    names = check(command, cfg, folder)
    base = _base(cfg)
    data = instantiate(cfg.data, tokenizer=base.tokenizer)
    data.setup("test")
    check_domains(data, names)
    before = judged(base, folder, data, cfg.split)
    with whole(output) as part:
        if command == "remove":
            about = take_out(folder, name, part)
        else:
            about = put_in(folder, name, Path(cfg.adapter), part)
            fit_expert(_base(cfg), part, name, data, cfg.rows)
        after = judged(_base(cfg), part, data, cfg.split)
        write_card(part, about, {f"test/{key}": value for key, value in after.items()})
    print(table(before, after))


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A place for what becomes `output` in the end: where anything fails, nothing is left."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        part = Path(scratch) / output.name
        yield part
        part.rename(output)


def check(command: str, cfg: DictConfig, folder: Path) -> list[str]:
    """The experts of whose domains rows are needed.

    Raises:
        LorachainsError: what is asked for can't be done; before anything is computed.
    """
    about, _ = read_routers(folder)
    output, names = Path(cfg.output), about.names
    if about.by_token:
        raise LorachainsError(f"{folder} is of method=moe_lora, whose routers know no domains: give one of method=moa")
    if command != "remove" and cfg.adapter is None:
        raise LorachainsError(f"{command} needs the expert: give adapter=DIR, a PEFT adapter")
    if (cfg.name in names) == (command == "add"):
        there = "already" if command == "add" else "not"
        raise LorachainsError(f"name={cfg.name} is {there} among the mixture's experts: {', '.join(names)}")
    if cfg.split not in ("val", "test"):
        raise LorachainsError(f"split is {cfg.split!r}: choose val or test")
    check_positive("rows", cfg.rows)
    if output.exists():
        raise LorachainsError(f"output={output} is there already: give a folder that is not")
    if output.resolve().is_relative_to(folder.resolve()):
        raise LorachainsError(f"output={output} lies within the mixture that is to stay as it is: give another folder")
    if command == "remove":
        return []
    return [*names, check_label(cfg.name, "name")] if command == "add" else names


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
        for key in ("run", "name", "output"):
            if not isinstance(cfg[key], str | int):
                raise LorachainsError(f"{key} is {cfg[key]!r}: give one name")
            cfg[key] = str(cfg[key])
        take_from_run(cfg, RunFolder(Path(cfg.run)), changes)
        cfg.adapter = given  # not the run's
        operate(name, cfg)

    command()


if __name__ == "__main__":
    main()
