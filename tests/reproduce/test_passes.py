"""What fails, or takes the process with it, is tried once more and then given up; all else is made."""

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from lorachains.reproduce import passes
from lorachains.reproduce.runs import Run
from tests.reproduce.folders import begin, fail, finish, run

Pass = Callable[[Sequence[Run]], int]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Sequence[Run], Pass], list[list[str]]]:
    """Makes runs by a stand-in for the process; gives the names of the unfinished ones at the start of each pass."""

    def call(runs: Sequence[Run], one_pass: Pass) -> list[list[str]]:
        asked = []

        def multirun(asked_for: Sequence[Run], *_: object) -> Generator[None, None, int]:
            yield
            asked.append([run.name for run in asked_for if not run.finished])
            return one_pass(asked_for)

        monkeypatch.setattr(passes, "_multirun", multirun)
        monkeypatch.setattr(passes, "POLL", 0)
        passes.make(runs, passes.Launch(tmp_path), lambda: None)
        return asked

    return call


def test_what_is_finished_needs_no_process(made: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    runs = [run(tmp_path, name) for name in "abc"]
    for one in runs:
        finish(one)
    assert made(runs, lambda _: pytest.fail("started")) == []


def test_a_failing_run_is_tried_twice(made: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    runs = [run(tmp_path, name) for name in "abc"]

    def one_pass(asked: Sequence[Run]) -> int:
        for one in asked:
            if not one.finished:
                fail(one, "too hot") if one.name == "b" else finish(one)
        return 1

    assert made(runs, one_pass) == [["a", "b", "c"], ["b"]]
    assert [one.finished for one in runs] == [True, False, True]
    assert runs[1].failure == "too hot"


def test_the_second_time_it_may_go_well(made: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    runs, codes = [run(tmp_path, "a")], [1, 0]

    def one_pass(asked: Sequence[Run]) -> int:
        code = codes.pop(0)
        fail(asked[0], "no luck") if code else finish(asked[0])
        return code

    assert made(runs, one_pass) == [["a"], ["a"]]
    assert runs[0].finished
    assert runs[0].failure is None


def test_a_run_that_ends_the_process_stops_no_other(made: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    """Runs whose turn hadn't come are not held to have failed, however often the process ends before them."""
    runs = [run(tmp_path, name) for name in "abcdef"]

    def one_pass(asked: Sequence[Run]) -> int:
        for one in asked:
            if one.finished:
                continue
            if one.name in "bde":
                begin(one)
                return -9
            finish(one)
        return 0

    asked = made(runs, one_pass)
    assert [one.name for one in runs if one.finished] == ["a", "c", "f"]
    assert len(asked) == 7  # two for each that is given up, and the last
    assert all("was ended by SIGKILL" in str(runs[i].failure) for i in (1, 3, 4))


def test_a_process_that_never_gets_to_a_run(made: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    runs = [run(tmp_path, name) for name in "ab"]
    assert len(made(runs, lambda _: -6)) == passes.ATTEMPTS
    assert len(made(runs, lambda _: 1)) == passes.ATTEMPTS
    assert all("ended with status 1: see" in str(one.failure) for one in runs)


def test_several_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained together stays together; what begins with other runs waits for them."""
    monkeypatch.setattr(passes, "POLL", 0)
    single, other = [run(tmp_path, name, lot="single") for name in "ab"], [run(tmp_path, "c", lot="other")]
    after = [run(tmp_path, "d", lot="after", before=[single[1]])]
    log: list[str] = []

    def multirun(lot: Sequence[Run], launch: passes.Launch, worker: int) -> Generator[None, None, int]:
        names = "".join(one.name for one in lot)
        log.append(f"{worker} begins {names}")
        yield
        for one in lot:
            fail(one, "too hot") if one.name == "b" else finish(one)
        log.append(f"{worker} ends {names}")
        return 0

    monkeypatch.setattr(passes, "_multirun", multirun)
    passes.make([*single, *other, *after], passes.Launch(tmp_path, workers=2), lambda: None)
    assert log == [
        "0 begins ab",
        "1 begins c",
        "0 ends ab",
        "0 begins ab",
        "1 ends c",
        "0 ends ab",
        "0 begins d",
        "0 ends d",
    ]
    assert [one.finished for one in (*single, *other, *after)] == [True, False, True, True]


def test_workers_share_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = passes.Launch(tmp_path, workers=3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [launch.environment(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["4", "7", "4"]
    assert launch.environment(0)["OMP_NUM_THREADS"] == "4"
    assert len({launch.log(worker) for worker in range(3)}) == 3
    alone = passes.Launch(tmp_path)
    assert alone.environment(0)["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert "OMP_NUM_THREADS" not in alone.environment(0)


def test_ctrl_c_ends_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "POLL", 0)
    ended = []

    def multirun(lot: Sequence[Run], *_: object) -> Generator[None, None, int]:
        try:
            while True:
                yield
        finally:
            ended.append(lot[0].name)

    def show() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(passes, "_multirun", multirun)
    runs = [run(tmp_path, name, lot=name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        passes.make(runs, passes.Launch(tmp_path, workers=2), show)
    assert ended == ["a", "b"]
