"""A run among others in one bank is the run alone: its adapter, its predictions, its metrics and its log."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorachains.errors import LorachainsError
from lorachains.jobs import Job, train_jobs
from lorachains.methods import Cola, Lora
from lorachains.methods.journal import Journal
from tests.jobs import adapter, close, distance, job, logged, metrics, predictions, same, trained
from tests.runs import DIVERGING

RUNS = [
    ["seed=0", "optim.lr=5e-3", "adapter.lora_alpha=16", "optim.schedule=linear"],
    ["seed=7", "optim.lr=1e-3", "adapter.lora_alpha=8", "optim.schedule=cosine", "optim.warmup=4"],
    ["seed=3", "optim.lr=1e-2", "adapter.lora_alpha=32", "optim.schedule=constant", "optim.optimizer.weight_decay=0.1"],
]
COLA = ["method=cola", "knots=at_steps", "knots.steps=[15,30]", "knots.ranks=[8,4,2]"]
TOLERANCE = {"float64": 1e-8, "float32": 1e-3}
SHORT = ["trainer.max_epochs=2", "method.select=last"]
"""14 optimizer steps, of which the last counts."""


def grid(folder: Path, runs: list[list[str]], *shared: str, **data: Any) -> list[Job]:
    return [job(folder / str(i), *run, *shared, **data) for i, run in enumerate(runs)]


def both_ways(folder: Path, runs: list[list[str]], *shared: str, **data: Any) -> list[tuple[Path, Path]]:
    """Makes the runs side by side and one after the other; returns each one's two folders."""
    together, apart = (grid(folder / way, runs, *shared, **data) for way in ("together", "apart"))
    trained(together)
    for alone in apart:
        trained([alone])
    return [(ours.folder.path, theirs.folder.path) for ours, theirs in zip(together, apart, strict=True)]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [(["method=lora"], "float64"), (["method=lora"], "float32"), (COLA, "float64"), (COLA, "float32")],
    ids=["lora float64", "lora float32", "cola float64", "cola float32"],
)
def test_each_run_is_the_run_alone(method: list[str], dtype: str, tmp_path: Path) -> None:
    """After 50 optimizer steps on candidates and free answers, with all that runs of one bank may differ in."""
    steps = ["trainer.max_epochs=8", "trainer.max_steps=50", "method.select=last"]
    for ours, theirs in both_ways(tmp_path, RUNS, *method, *steps, tasks=["stub", "free"], dtype=dtype):
        assert metrics(ours)["best/optimizer_step"] == 50
        assert same(ours, theirs, TOLERANCE[dtype])
    assert all(distance(tmp_path / "together" / "0", tmp_path / "together" / other) > 0.1 for other in "12")


@pytest.mark.parametrize(
    "shared",
    [
        ["trainer.gradient_clip_val=0.05"],
        ["trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.05"],
        ["optim=sgd", "optim.lr=1e-1", "optim.optimizer.momentum=0.9"],
        ["method=cola", "knots=at_steps", "knots.steps=[5]", "knots.lr=rewarm", "knots.warmup=2"],
        ["+method.names=[one,two]"],
    ],
    ids=["clipped", "accumulated", "momentum", "rewarmed", "two experts each"],
)
def test_other_ways_to_train(shared: list[str], tmp_path: Path) -> None:
    runs = [["seed=0", "adapter.lora_alpha=4"], ["seed=1", "adapter.lora_alpha=64"]]
    tasks = ["one", "two"] if "+method.names=[one,two]" in shared else ["stub"]
    for ours, theirs in both_ways(tmp_path, runs, "optim.lr=5e-3", *shared, *SHORT, tasks=tasks):
        assert same(ours, theirs, 1e-8)


def test_an_architecture_that_reads_no_stream(tmp_path: Path) -> None:
    """Bloom takes its softmax in float32, and over other padding than alone."""
    for ours, theirs in both_ways(tmp_path, RUNS[:2], *SHORT, arch="bloom"):
        assert same(ours, theirs, 1e-6)


def test_clipping_one_run_leaves_the_others(tmp_path: Path) -> None:
    """Only the first run's gradient is above the norm: for the other, a run without clipping is the same."""
    runs = [["adapter.lora_alpha=1000"], ["adapter.lora_alpha=1", "seed=1"]]
    clipped = grid(tmp_path / "clipped", runs, *SHORT, "trainer.gradient_clip_val=1.0")
    free = grid(tmp_path / "free", runs, *SHORT)
    trained(clipped)
    trained(free)
    (first, second), (first_free, second_free) = ([job.folder.path for job in jobs] for jobs in (clipped, free))
    assert distance(first, first_free) > 1e-3
    assert distance(second, second_free) == 0


def test_each_run_has_a_best_epoch_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first knot, between the knots, and after the second one."""
    summaries, best = Lora.adapter_summaries, {0: 7, 1: 14, 2: 21}

    def rigged(self: Lora, split: str) -> list[dict[str, float]]:
        scores = [float(self.trainer.global_step == best[seed]) for seed in self.seeds]
        return [{**summary, "accuracy": s} for summary, s in zip(summaries(self, split), scores, strict=True)]

    monkeypatch.setattr(Lora, "adapter_summaries", rigged)
    knots = ["method=cola", "knots=at_steps", "knots.steps=[10,17]", "knots.ranks=[8,4,2]", "trainer.max_epochs=3"]
    for seed, (ours, theirs) in enumerate(both_ways(tmp_path, [[f"seed={seed}"] for seed in best], *knots)):
        assert metrics(ours)["best/optimizer_step"] == best[seed]
        assert same(ours, theirs, 1e-8)


def test_each_run_has_rows_of_its_own(tmp_path: Path) -> None:
    """Tasks, and drawn rows, that differ between the runs; as many of each."""
    changes: list[dict[str, Any]] = [{"tasks": ["one"]}, {"tasks": ["two"]}, {"tasks": ["one"], "seed": 5}]
    made: dict[str, list[Job]] = {
        way: [job(tmp_path / way / str(i), *SHORT, **change) for i, change in enumerate(changes)]
        for way in ("together", "apart")
    }
    trained(made["together"])
    for alone in made["apart"]:
        trained([alone])
    for ours, theirs in zip(made["together"], made["apart"], strict=True):
        assert same(ours.folder.path, theirs.folder.path, 1e-8)
        assert metrics(ours.folder.path)["train/tokens"] == metrics(theirs.folder.path)["train/tokens"]


UNEVEN: list[dict[str, Any]] = [{"train_size": 27}, {"tasks": ["one", "two"], "train_size": 3}, {"train_size": 11}]
"""Epochs of 7, 2 and 3 batches."""


def uneven(folder: Path, *shared: str) -> list[Job]:
    sizes = zip(RUNS, UNEVEN, strict=True)
    return [job(folder / str(i), *run, *shared, **data) for i, (run, data) in enumerate(sizes)]


def alike_but_for_the_log(ours: Path, theirs: Path, tolerance: float) -> bool:
    """The log goes by the optimizer steps of the group."""
    return distance(ours, theirs) <= tolerance and all(
        close(read(ours), read(theirs), tolerance) for read in (metrics, predictions)
    )


@pytest.mark.parametrize(
    "shared",
    [
        ["trainer.gradient_clip_val=0.05"],
        ["trainer.accumulate_grad_batches=2"],
    ],
    ids=["clipped", "accumulated"],
)
def test_runs_whose_epochs_differ_in_length(shared: list[str], tmp_path: Path) -> None:
    """Each by its own optimizer steps: schedule, warm-up, moments and best epoch."""
    shared = [*shared, "trainer.max_epochs=3"]
    together, apart = uneven(tmp_path / "together", *shared), uneven(tmp_path / "apart", *shared)
    trained(together)
    for ours, theirs in zip(together, apart, strict=True):
        trained([theirs])
        assert alike_but_for_the_log(ours.folder.path, theirs.folder.path, 1e-8)
        assert ours.folder.read_metrics()["run/side_by_side"] == 3


def test_a_stopped_group_of_uneven_runs_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ["trainer.max_epochs=3", "checkpoint_every=2"]
    trained(uneven(tmp_path / "whole", *shared))
    for hook, step, again in (("on_train_batch_start", 5, []), ("on_train_epoch_end", 14, ["resume=true"])):
        with monkeypatch.context() as patch:
            patch.setattr(Lora, hook, killed_at(hook, step))
            train_jobs(uneven(tmp_path / "stopped", *shared, *again))
    trained(uneven(tmp_path / "stopped", *shared, "resume=true"))
    for i in "012":
        ours, theirs = tmp_path / "stopped" / i, tmp_path / "whole" / i
        assert distance(ours, theirs) == 0
        assert close(metrics(ours), metrics(theirs), 0)


def test_an_adapter_without_rows_is_left_as_it_is(tmp_path: Path) -> None:
    """In spite of momentum and weight decay, and it has nothing to log."""
    shared = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optim.optimizer.weight_decay=0.5"]
    group = [job(tmp_path / name, *shared, train_size=size) for name, size in (("long", 27), ("short", 7))]
    states: dict[int, Any] = {}

    def keep(journal: Journal) -> None:
        close_step(journal)
        states[journal.method.trainer.global_step] = journal.method.trained[1].detach().clone()

    close_step = Journal.close_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "close_step", keep)
        trained(group)
    moved = [step for step in range(2, 15) if not bool((states[step] == states[step - 1]).all())]
    steps = [step for step in range(1, 15) if (step - 1) % 7 + 1 in (4, 7)]
    assert moved == steps
    assert [step for step, name in logged(tmp_path / "short") if name == "train/loss"] == steps


@pytest.mark.parametrize("counting", [["method=cola", "knots=even"], ["trainer.max_steps=9"]])
def test_runs_that_count_optimizer_steps_are_trained_apart(counting: list[str], tmp_path: Path) -> None:
    jobs = [job(tmp_path / str(i), *SHORT, *counting, train_size=size) for i, size in enumerate([27, 11])]
    trained(jobs)
    assert [job.folder.read_metrics()["run/side_by_side"] for job in jobs] == [1, 1]


def test_a_diverging_run_is_stopped_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [["optim=sgd", "optim.lr=1e-1", "seed=1"], DIVERGING, ["optim=sgd", "optim.lr=1e-2", "seed=2"]]
    steps = ["trainer.max_epochs=4", "method.select=last"]
    together = grid(tmp_path / "together", runs, *steps, dtype="float32")
    with caplog.at_level(logging.ERROR, "lorachains"):
        first, diverged, last = train_jobs(together)
    assert isinstance(diverged, LorachainsError)
    assert "training has diverged; lower optim.lr (1000000.0)" in str(diverged)
    assert [r.getMessage() for r in caplog.records if "run 2 of 3 is stopped" in r.getMessage()] != []
    assert not together[1].folder.metrics.exists()
    for i, outcome in ((0, first), (2, last)):
        assert isinstance(outcome, dict)
        alone = job(tmp_path / "apart" / str(i), *runs[i], *steps, dtype="float32")
        trained([alone])
        assert same(tmp_path / "together" / str(i), alone.folder.path, 1e-3)


def test_when_all_diverge_each_is_told(tmp_path: Path) -> None:
    outcomes = train_jobs(grid(tmp_path, [DIVERGING, [*DIVERGING, "seed=1", "optim.lr=2e6"]], *SHORT, dtype="float32"))
    for outcome, rate in zip(outcomes, ("1000000.0", "2000000.0"), strict=True):
        assert f"lower optim.lr ({rate})" in str(outcome)


class Killed(Exception):
    pass


def killed_at(hook: str, step: int) -> Callable[..., None]:
    """A hook of the method that raises after so many optimizer steps."""
    original = getattr(Lora, hook)

    def kill(self: Lora, *args: Any) -> None:
        if self.trainer.global_step == step:
            raise Killed
        original(self, *args)

    return kill


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    trained(grid(folder, RUNS, *COLA, "trainer.max_epochs=5"))
    return folder


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_start", 10), ("on_train_batch_start", 15), ("on_train_epoch_end", 14), ("on_test_epoch_end", 35)],
)
def test_a_stopped_group_goes_on(
    hook: str, step: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also from before and after a knot (15)."""

    shared = [*COLA, "trainer.max_epochs=5", "checkpoint_every=4"]
    with monkeypatch.context() as patch:
        patch.setattr(Lora, hook, killed_at(hook, step))
        outcomes = train_jobs(grid(tmp_path, RUNS, *shared))
    assert [type(outcome) for outcome in outcomes] == [Killed] * 3
    trained(grid(tmp_path, RUNS, *shared, "resume=true"))
    for i in "012":
        ours, theirs = tmp_path / i, uninterrupted / i
        assert all(bool((adapter(ours)[key] == value).all()) for key, value in adapter(theirs).items())
        assert close(metrics(ours), metrics(theirs), 0)
        assert predictions(ours) == predictions(theirs)


def test_an_unfinished_group_is_not_begun_anew_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ["trainer.max_epochs=2", "checkpoint_every=4"]
    with monkeypatch.context() as patch:
        patch.setattr(Lora, "on_train_batch_start", killed_at("on_train_batch_start", 9))
        train_jobs(grid(tmp_path, RUNS, *shared))
    for outcome in train_jobs(grid(tmp_path, RUNS, *shared)):
        assert "holds an unfinished training of these runs: add resume=true" in str(outcome)
    trained(grid(tmp_path, RUNS, *shared, "overwrite=true"))
    assert not list(tmp_path.glob(".groups/*/last.ckpt"))  # nothing is left to go on with


def test_a_knot_that_moves_one_run_stops_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drift is each run's own: the others' logits neither hide it nor suffer from it."""
    drifts = Cola._drifts
    monkeypatch.setattr(
        Cola, "_drifts", lambda self, *given: [drift + run for run, drift in enumerate(drifts(self, *given))]
    )
    knots = ["method=cola", "knots=at_steps", "knots.steps=[5]", "trainer.max_epochs=2"]
    good, bad = train_jobs(grid(tmp_path, [["seed=0"], ["seed=1"]], *knots))
    assert isinstance(good, dict)
    assert "knot 1 after optimizer step 5 moved the logits by 1.0e+00" in str(bad)


def test_a_stopped_run_of_a_group_that_goes_on_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as if the group had not been interrupted, and logs nothing more."""
    runs, steps = [["optim=sgd", "optim.lr=1e-1"], DIVERGING], ["trainer.max_epochs=3", "checkpoint_every=4"]
    _, whole = train_jobs(grid(tmp_path / "whole", runs, *steps, dtype="float32"))
    with monkeypatch.context() as patch:
        patch.setattr(Lora, "on_train_batch_start", killed_at("on_train_batch_start", 13))
        train_jobs(grid(tmp_path / "stopped", runs, *steps, dtype="float32"))
    first, again = train_jobs(grid(tmp_path / "stopped", runs, *steps, "resume=true", dtype="float32"))
    assert isinstance(first, dict)
    assert str(again) == str(whole)
    assert "after optimizer step 7" in str(again)
    assert max(step for step, _ in logged(tmp_path / "stopped" / "1")) == 7
