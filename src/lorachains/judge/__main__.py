"""`python -m lorachains.judge run=DIR`: lets an LLM rate a run's answers, or those in a file (`predictions=FILE`)."""

import json
import os
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from lorachains.answers import read_answers
from lorachains.cli import one_line_errors
from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.judge.cache import ReplyCache
from lorachains.judge.local import LocalModel
from lorachains.judge.rating import Judge, lines, rate, read_ratings, summarise
from lorachains.judge.scales import SCALES
from lorachains.run_folder import RunFolder, write_whole


def make_judge(cfg: DictConfig) -> Judge:
    """The base model that the config names, else the endpoint. Raises a LorachainsError if there is neither."""
    if cfg.get("model") is not None:  # null in the defaults leaves no key
        base = instantiate(cfg.model)
        base.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return LocalModel(base, cfg.local.max_new_tokens, cfg.local.batch_size)
    if not cfg.endpoint.url:
        raise LorachainsError(
            "there is no judge: give endpoint.url (or JUDGE_BASE_URL in the environment), or a local model as "
            "model=smollm2-135m"
        )
    made: Judge = instantiate(cfg.endpoint)
    return made


def judge(cfg: DictConfig) -> None:
    """Prints the summary as JSON, and writes it and the ratings to `output`."""
    if cfg.scale not in SCALES:
        raise LorachainsError(f"scale is {cfg.scale!r}: choose {' or '.join(SCALES)}")
    if (cfg.predictions is None) == (cfg.run is None):
        raise LorachainsError("give either run=DIR, a run's folder, or predictions=FILE")
    scale, folder = SCALES[cfg.scale], Path(cfg.output)
    file = Path(cfg.predictions) if cfg.predictions else RunFolder(Path(cfg.run)).predictions
    answers = read_answers(file, cfg.rows, cfg.seed)
    prompts = [scale.prompt(a.prompt, a.prediction, a.reference if cfg.reference else None) for a in answers]
    asked = make_judge(cfg)
    default = Path(os.environ.get("LORACHAINS_CACHE") or "~/.cache/lorachains") / "judge"
    cache = ReplyCache(Path(cfg.cache or default).expanduser(), asked.identity)
    replies = rate(asked, prompts, cache)
    console = Console(stderr=True)
    shown = track(replies, "answers to rate", len(set(prompts)), transient=True, console=console)
    ratings = read_ratings(scale, answers, prompts, shown)
    summary = {"judge/scale": cfg.scale, **summarise(ratings)}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "ratings.jsonl", lines(ratings))
    write_whole(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(summary, indent=2, ensure_ascii=False))


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="judge")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """The command line."""
    judge(cfg)


if __name__ == "__main__":
    main()
