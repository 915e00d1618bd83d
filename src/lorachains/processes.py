"""Starts the processes of one run on several devices, one for each.

They are started from a run's settings as plain data, so that no command line is run again: a Hydra multirun and its
launchers work as they do with one device. Processes of torchrun or srun are taken as they come.
"""

import logging
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.context import SpawnProcess
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from lorachains.console import ConsoleHandler
from lorachains.errors import LorachainsError
from lorachains.parallel import STARTED

T = TypeVar("T")
GRACE = 5.0
"""Seconds that the other processes have to end by themselves when one has failed."""


# -- starting them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Team:
    """What a started process has to know."""

    size: int
    port: int
    folder: str
    logs: Any
    levels: dict[str, int]
    console: list[tuple[int, logging.Formatter | None]]


def launch(function: Callable[..., T], *args: Any, processes: int) -> T:
    """Calls a function of a module in each of some new processes, which Lightning will take for those of its devices.

    The first one logs to this process's handlers; the others don't log. If one fails, all are ended.

    Returns:
        What it returned in the first.

    Raises:
        Exception: what it raised where it failed first, with the traceback of there as a note.
    """
    with TemporaryDirectory() as folder, _listening() as logs:
        team = _Team(processes, _free_port(), folder, logs, _levels(), _console())
        context = start_processes(_work, (team, function, args), nprocs=processes, join=False, start_method="spawn")
        try:
            while not context.join(grace_period=GRACE):
                pass
        except (ProcessExitedException, ProcessRaisedException) as failure:
            raise _cause(Path(folder), failure) from None
        except KeyboardInterrupt:  # they are interrupted too; it is told by the first, as by a run on one device
            for process in context.processes:
                process.join(GRACE)
            sys.exit(1)
        finally:
            _end(context.processes)
        result: T = _read(Path(folder, "0"))[1]
        return result


def _work(rank: int, team: _Team, function: Callable[..., Any], args: Sequence[Any]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(team.port), "WORLD_SIZE": str(team.size),
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", STARTED: "1",
    }  # fmt: skip
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    _log(rank, team)
    try:
        result = function(*args)
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    except Exception as error:
        _write(Path(team.folder, str(rank)), _portable(error))
        _flush(team.logs)
        os._exit(1)  # at once: what is run at exit may wait for the other processes
    if rank == 0:
        _write(Path(team.folder, "0"), result)


def _write(path: Path, outcome: object) -> None:
    part = path.with_name(f"part-{path.name}")
    part.write_bytes(pickle.dumps((time.time(), outcome)))
    part.replace(path)


def _read(path: Path) -> tuple[float, Any]:
    moment, outcome = pickle.loads(path.read_bytes())
    return moment, outcome


def _portable(error: Exception) -> Exception:
    """The error, or what of its causes a user is to be told, as it can be sent to another process."""
    text = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None and not isinstance(link, LorachainsError):
        link = link.__cause__
    told = link if isinstance(link, LorachainsError) else error
    told.add_note(text)
    try:
        pickle.loads(pickle.dumps(told))
    except Exception:
        return RuntimeError(text)
    return told


def _cause(folder: Path, failure: Exception) -> Exception:
    """The first error of all processes; those that follow are of processes that miss another."""
    errors = [(moment, error) for moment, error in map(_read, folder.glob("[0-9]*")) if isinstance(error, Exception)]
    told = [found for found in errors if isinstance(found[1], LorachainsError)]
    if not told and (getattr(failure, "signal_name", None) or not errors):
        return LorachainsError(f"a device's {failure}: resume=true goes on; the host may have run out of memory")
    return min(told or errors, key=itemgetter(0))[1]


def _end(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE)
        process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# -- their log ---------------------------------------------------------------------------------------------------------


@contextmanager
def _listening() -> Iterator[Any]:
    """A queue for log records that this process's handlers take, all but the console's: see `_log`."""
    handlers = [h for h in logging.getLogger().handlers if not isinstance(h, ConsoleHandler)]
    queue = multiprocessing.get_context("spawn").Queue()
    listener = QueueListener(queue, *handlers, respect_handler_level=True)
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
        queue.close()


def _levels() -> dict[str, int]:
    loggers = logging.getLogger().manager.loggerDict.items()
    return {"": logging.getLogger().level} | {
        n: x.level for n, x in loggers if isinstance(x, logging.Logger) and x.level
    }


def _console() -> list[tuple[int, logging.Formatter | None]]:
    return [(h.level, h.formatter) for h in logging.getLogger().handlers if isinstance(h, ConsoleHandler)]


def _log(rank: int, team: _Team) -> None:
    """The first process logs to its parent; to the console by itself, since it draws the progress bar there."""
    if rank > 0:
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        return
    for name, level in team.levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it tells of each process that joins
    root = logging.getLogger()
    root.handlers = [QueueHandler(team.logs)]
    for level, formatter in team.console:
        handler = ConsoleHandler()
        handler.setLevel(level)
        handler.setFormatter(formatter)
        root.addHandler(handler)


def _flush(queue: Any) -> None:
    queue.close()
    queue.join_thread()
