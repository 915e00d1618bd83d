"""Jobs: runs to be made. Those that can be stacked are trained side by side, and what several share is trained once."""

import gc
import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from lorachains.beginnings import check_apart, check_start
from lorachains.cli import settings_of
from lorachains.corpus import check_adapted, prune_to, settle
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.forks import fork, forks
from lorachains.grouping import ties_none
from lorachains.inject import check_config
from lorachains.loggers import finishing
from lorachains.memory import out_of_memory, reset_peak
from lorachains.methods import Method
from lorachains.models import LanguageModel
from lorachains.parallel import home, take_device, to_start, writes
from lorachains.processes import launch
from lorachains.provenance import record
from lorachains.run_folder import RunFolder, resumable
from lorachains.session import Outcome, Session

log = logging.getLogger(__name__)

GROUPS = ".groups"
"""The folder beside those of runs, for the checkpoints of those that are trained together."""


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Args:
        cfg: as `conf/train.yaml` composes it, resolved.
        folder: for its results.
        trunk: a job that is the same up to this one's first knot: this one goes on from there, if it finds its state.
        branches: configs of the knots of jobs to which this one is the trunk: it leaves its state at their first knots.
    """

    cfg: DictConfig
    folder: RunFolder
    trunk: Optional["Job"] = None
    branches: tuple[DictConfig, ...] = ()

    @property
    def anew(self) -> bool:
        """Whether results that are in the folder are to be deleted."""
        return bool(self.cfg.overwrite) and not self.cfg.resume


def train_jobs(jobs: Sequence[Job], group_size: int | None = None) -> list[Outcome]:
    """Trains, tests and saves runs that differ in what can be stacked in one bank (`grouping`), as if each were alone.

    Args:
        group_size: at most so many side by side; as many as memory holds if `None`: halves where it is too little.

    Returns:
        Each run's metrics, or the error that ended it.
    """
    outcomes: dict[int, Outcome] = {}
    for i, job in enumerate(jobs if writes() else ()):
        try:
            job.folder.check(settings_of(job.cfg), job.cfg.resume, job.cfg.overwrite)
            check_start(job.cfg)
            if not job.anew:
                _begin(job)
            else:
                check_apart(job.cfg, job.folder)
        except LorachainsError as error:
            outcomes[i] = error
    ready = [i for i in range(len(jobs)) if i not in outcomes]
    size = group_size or len(jobs)
    for start in range(0, len(ready), size):
        part = ready[start : start + size]
        outcomes |= zip(part, _side_by_side([jobs[i] for i in part]), strict=True)
    return [outcomes[i] for i in range(len(jobs))]


def _begin(job: Job) -> None:
    job.folder.begin(settings_of(job.cfg), job.cfg.resume, job.cfg.overwrite)
    record(job.folder.code)


def _side_by_side(jobs: Sequence[Job]) -> list[Outcome]:
    try:
        return _on_devices(jobs)
    except _Apart as apart:
        parts = apart.parts
        log.info("%s: trained apart, %s runs side by side", apart.why, [len(part) for part in parts])
        done = {job.folder: outcome for part in parts for job, outcome in zip(part, _side_by_side(part), strict=True)}
        return [done[job.folder] for job in jobs]
    except Exception as error:
        if not out_of_memory(error):
            return [error] * len(jobs)
        if len(jobs) == 1:
            remedy = "lower data.batch_size or data.max_length, or set model.checkpointing=true"
            return [LorachainsError(f"out of memory ({_first_line(error)}): {remedy}")]
        half = (len(jobs) + 1) // 2
        log.warning("%d runs side by side need more memory than there is: %d at a time", len(jobs), half)
    gc.collect()
    torch.cuda.empty_cache()
    return _side_by_side(jobs[:half]) + _side_by_side(jobs[half:])


class _Apart(Exception):
    """Runs that can't be trained side by side, by those that can."""

    def __init__(self, why: str, parts: list[list[Job]]):
        super().__init__(why, parts)
        self.why, self.parts = why, parts


def _on_devices(jobs: Sequence[Job]) -> list[Outcome]:
    """Trains the jobs in this process, or in one for each device if there are several."""
    devices = to_start(jobs[0].cfg.trainer)
    if devices == 1:
        return _train(jobs)
    sent = deepcopy(list(jobs))
    for job in sent:
        OmegaConf.resolve(job.cfg)  # what refers to Hydra's own config can't be resolved in another process
    return launch(_train, sent, processes=devices)


def _train(jobs: Sequence[Job]) -> list[Outcome]:
    first = jobs[0].cfg
    take_device(first.trainer)
    reset_peak()
    seed_everything(first.seed, verbose=False)
    base, data, methods = loaded(jobs)
    model: Any = base.model
    if not getattr(model, "is_quantized", False):  # such a model is there, and may not be moved
        model.to(home(first.trainer))  # before it is tried out and adapters are drawn: hosts take seconds for that
    method = stack(methods, base)
    check_adapted(base)
    data.setup()
    for job in jobs if writes() else ():
        if job.anew:  # not before all is there to take its place
            _begin(job)
    checkpoint = checkpoint_of(jobs)
    if len(jobs) > 1 and checkpoint.is_file() and not first.resume:
        _start_afresh(checkpoint, first.overwrite)
    start = resumable(checkpoint) if first.resume else None
    with ExitStack() as entered:
        loggers = [entered.enter_context(finishing(instantiate(j.cfg.logger), settings_of(j.cfg))) for j in jobs]
        session = Session(
            method, data, [job.folder for job in jobs], loggers, checkpoint, first.checkpoint_every,
            first.checkpoint_seconds, forks(first.trainer, jobs[0].branches, data.runs[0], checkpoint),
        )  # fmt: skip
        trainer = instantiate(first.trainer, logger=loggers, callbacks=session.callbacks)
        try:
            session.fit(trainer, start or _fork(jobs, data.runs[0]))
        except LorachainsError:
            if len(method.failures) < len(jobs):
                raise
            return [method.failures[run] for run in range(len(jobs))]
        outcomes = session.finish()
    if len(jobs) > 1 and writes():
        checkpoint.unlink(missing_ok=True)
    return outcomes


def _fork(jobs: Sequence[Job], data: TaskDataModule) -> Path | None:
    """The state with which the jobs' training begins, if they have trunks that left one."""
    trunks = [job.trunk for job in jobs if job.trunk is not None]
    first = jobs[0].cfg
    return fork(first.trainer, first.knots, data, checkpoint_of(trunks)) if trunks else None


def loaded(jobs: Sequence[Job]) -> tuple[LanguageModel, RunsDataModule, list[Any]]:
    """The base, pruned to the data if that is asked for, and what `_built` makes of it."""
    base: LanguageModel = instantiate(jobs[0].cfg.model)
    data, methods = _built(jobs, base)
    if base.prune_vocab:
        base, before = prune_to(base, data.runs), data.runs
        data, methods = _built(jobs, base)
        base = settle(base, before, data.runs)
    return base, data, methods


def _start_afresh(checkpoint: Path, overwrite: bool) -> None:
    if not overwrite:
        raise LorachainsError(
            f"{checkpoint} holds an unfinished training of these runs: add resume=true to go on with it, "
            "overwrite=true to start afresh, or choose another hydra.sweep.dir"
        )
    if writes():
        checkpoint.unlink()


def stack(methods: Sequence[Any], base: LanguageModel) -> Method:
    """One method for several runs.

    Args:
        methods: `functools.partial`s of one method class, as a config's `method` gives them.
    """
    own = [key for key in ("adapter", "optim", "seed") if key in methods[0].keywords]
    each = {key: [method.keywords[key] for method in methods] for key in own}
    method: Method = methods[0](base=base, **each)
    return method


def _built(jobs: Sequence[Job], base: LanguageModel) -> tuple[RunsDataModule, list[Any]]:
    """The runs' data, of which rows that several share are read once, and their methods, to be stacked.

    Raises:
        _Apart: a run can't be built, or epochs differ in their length where they may not.
    """
    read: dict[str, TaskDataModule] = {}
    runs, methods, bad = [], [], []
    for job in jobs:
        try:
            methods.append(instantiate(job.cfg.method, _partial_=True))
            if adapter := methods[-1].keywords.get("adapter"):
                check_config(adapter)
            rows = str({key: value for key, value in settings_of(job.cfg)["data"].items() if key != "order_seed"})
            if rows not in read:
                data = instantiate(job.cfg.data, tokenizer=base.tokenizer)
                data.setup()
                read[rows] = data
            runs.append(read[rows].in_order(job.cfg.data.order_seed))
            if methods[-1].keywords.get("names", ()) is None:  # an adapter for each task
                methods[-1].keywords["names"] = [task.name for task in runs[-1].tasks]
        except Exception:
            if len(jobs) == 1:
                raise
            bad.append(job)
    if bad:
        good = [job for job in jobs if not any(job is other for other in bad)]
        raise _Apart("settings that can't be used", [*([good] if good else []), *([job] for job in bad)])
    _check_lengths(jobs, runs)
    return RunsDataModule(runs), methods


def _check_lengths(jobs: Sequence[Job], runs: Sequence[TaskDataModule]) -> None:
    """Raises _Apart where epochs differ in their batches, and something counts optimizer steps: knots, or a limit."""
    by_length: dict[int, list[Job]] = {}
    for job, run in zip(jobs, runs, strict=True):
        by_length.setdefault(len(run.batches()), []).append(job)
    if len(by_length) == 1:
        return
    if any(job.branches or not ties_none(job.cfg) or job.cfg.trainer.max_steps != -1 for job in jobs):
        raise _Apart("epochs of different lengths", list(by_length.values()))


def checkpoint_of(jobs: Sequence[Job]) -> Path:
    """Where the runs' one checkpoint is: in the folder of a run alone, else beside the runs' folders."""
    if len(jobs) == 1:
        return jobs[0].folder.checkpoint
    first, names = jobs[0].folder.path, "\n".join(job.folder.path.name for job in jobs)
    return first.parent / GROUPS / f"{first.name}-{hashlib.sha256(names.encode()).hexdigest()[:8]}" / "last.ckpt"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
