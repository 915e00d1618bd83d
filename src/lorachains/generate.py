"""`python -m lorachains.generate run=DIR prompt="…"`: answers as JSON lines. See `conf/generate.yaml`."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

import lorachains
from lorachains.cli import one_line_errors, quick_imports
from lorachains.config import conf_dir
from lorachains.data.rows import read_file
from lorachains.errors import LorachainsError, check_positive, check_switch

with quick_imports():
    from lorachains.answering.engine import Answerer
    from lorachains.answering.replies import Answered
    from lorachains.generation import Sampling


def main() -> None:
    """The command line. What follows `prompt=` is taken as it is, whatever characters are in it."""
    said = [argument for argument in sys.argv[1:] if argument.startswith("prompt=")]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in said]

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="generate")
    @one_line_errors
    def command(cfg: DictConfig) -> None:
        texts = _prompt(said[-1].removeprefix("prompt="), cfg) if said else _texts(cfg)
        check_switch("resident", cfg.resident)
        settings = {key: cfg[key] for key in ("selection", "threshold", "fallback")}
        chain = lorachains.load(
            cfg.run,
            resident=cfg.resident,
            expert=cfg.expert,
            decision=cfg.decision,
            mixture=cfg.mixture,
            selector=cfg.selector,
            **settings,
        )
        for line in answers(chain, texts, cfg):
            print(json.dumps(line, ensure_ascii=False), flush=True)

    command()


def answers(chain: Answerer, texts: Sequence[str], cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """What is printed of each text's answer, as they come (`Answerer.stream`)."""
    if cfg.answers not in ("best", "all"):
        raise LorachainsError(f"answers is {cfg.answers!r}: choose best or all")
    for key in ("max_new_tokens", "batch_size", "top_k"):
        check_positive(key, cfg[key])
    sampling = None if cfg.sampling is None else _sampling(cfg, len(texts))
    found = chain.stream(texts, cfg.max_new_tokens, cfg.top_k, cfg.batch_size, sampling)
    yield from (_line(text, answer, cfg.answers == "all") for text, answer in zip(texts, found, strict=True))


def _sampling(cfg: DictConfig, rows: int) -> Sampling:
    """Raises `LorachainsError` for settings that can't be sampled with."""
    given, known = cfg.sampling, [field.name for field in fields(Sampling) if field.name != "seeds"]
    if not isinstance(given, DictConfig) or not set(given) <= set(known):
        raise LorachainsError(f"sampling is {given}: give a mapping of {', '.join(known)}, as {{temperature: 0.7}}")
    if type(cfg.seed) is not int or cfg.seed < 0:
        raise LorachainsError(f"seed is {cfg.seed!r}: give a whole number of 0 or more")
    return Sampling(range(cfg.seed, cfg.seed + rows), **given)  # type: ignore[arg-type]


def _line(text: str, answer: Answered, all_of_them: bool) -> dict[str, Any]:
    choice, best = answer.choice, answer.replies[0]
    line: dict[str, Any] = {"prompt": text, "task": best.adapter}
    if choice.tasks:
        known = dict(zip(choice.tasks, choice.probabilities, strict=False))
        line |= {"probability": known.get(best.adapter), "top_k": [[task, known.get(task)] for task in choice.tasks]}
    line |= {"answer": best.text, "tokens": best.tokens}
    if all_of_them:
        line["answers"] = [
            {"task": r.adapter, "answer": r.text, "tokens": r.tokens, "likelihood": r.likelihood}
            for r in answer.replies
        ]
    phase = "select" if choice.route is None else "route"
    if choice.route is not None:
        line["route"] = asdict(choice.route)
    return line | {"seconds": {phase: round(choice.seconds, 4), "generate": round(best.seconds, 4)}}


def _prompt(text: str, cfg: DictConfig) -> list[str]:
    if cfg.prompts is not None:
        raise LorachainsError("both prompt and prompts are given: give one of them")
    if not text.strip():
        raise LorachainsError("prompt is empty: give an instruction")
    return [text]


def _texts(cfg: DictConfig) -> list[str]:
    """The instructions of a file, or of standard input.

    Raises:
        LorachainsError: there is none, or a row has no prompt: with file and line.
    """
    if cfg.prompts is not None:
        path = Path(cfg.prompts)
        if not path.is_file():
            raise LorachainsError(f"prompts is {cfg.prompts!r}: give a JSON Lines file with the field prompt")
        texts = [row.text("prompt") for row in read_file(path)]
    else:
        try:
            texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        except UnicodeDecodeError as error:
            raise LorachainsError(f"standard input is no UTF-8 ({error}): convert it") from error
    if not texts:
        raise LorachainsError('no instruction: give prompt="…", prompts=FILE.jsonl, or lines on standard input')
    return texts


if __name__ == "__main__":
    main()
