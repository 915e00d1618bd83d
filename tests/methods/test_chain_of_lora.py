"""A selector and experts trained at once, each as if alone; tasks come and go without a change to the others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.jobs import Job, train_jobs
from lorachains.methods import ChainOfLora, routed_answers
from tests.jobs import job, metrics, predictions, same, trained
from tests.runs import any_method, fit, language_model, make_data, make_method, make_trainer

TASKS = ["one", "few", "free"]
METHOD = ["method=chain_of_lora", "trainer.max_epochs=2"]
SHORT_PROMPT = r"method.task_prompt='{instruction} Task:'"
SMALL: dict[str, Any] = {"train_size": 9, "val_size": 3, "test_size": 4, "max_length": 128}


def chain(*overrides: str, **fields: Any) -> ChainOfLora:
    base = language_model(dtype=torch.float64)
    made = any_method("method=chain_of_lora", *overrides, base=base, **{"names": TASKS, **fields})
    assert isinstance(made, ChainOfLora)
    return made


def alone(run: TaskDataModule, task: int, rows_of: int) -> TaskDataModule:
    """One adapter's rows as the rows of a run of one task."""
    rows = {s: [replace(row, task=0) for row in run.rows(s) if row.task == task] for s in ("train", "val", "test")}
    return run.with_rows(rows, [run.tasks[task]], [rows_of])


@pytest.mark.parametrize("trainer", [["trainer.gradient_clip_val=0.05"], ["trainer.accumulate_grad_batches=2"]])
def test_each_adapter_trains_as_if_alone(trainer: list[str]) -> None:
    """The selector too; one expert has a third of the others' optimizer steps."""
    steps = ["trainer.max_epochs=2", *trainer]
    together = chain(selector_batch_size=11)
    data = together.reads(RunsDataModule([make_data(together.base, tasks=TASKS)]))
    fit(together, *steps, module=data)
    for expert in range(4):
        single = make_method(f"seed={expert}", base=language_model(dtype=torch.float64))
        fit(single, *steps, module=alone(data.runs[0], expert, 4 if expert else 11))
        for layer, bank in together.chain.banks.items():
            for name in ("lora_A", "lora_B"):
                ours, theirs = getattr(bank, name)[expert], getattr(single.chain.banks[layer], name)[0]
                assert (ours - theirs).norm() <= 1e-8 * theirs.norm()


def test_the_selector_has_a_learning_rate_of_its_own() -> None:
    """Beside it the experts train at theirs: each adapter is what it is in a chain whose rate is its own."""
    own, selectors, experts = chain(selector_lr=3e-3), chain("optim.lr=3e-3"), chain()
    data = own.reads(RunsDataModule([make_data(own.base, tasks=TASKS)]))
    for made in (own, selectors, experts):
        fit(made, "trainer.max_epochs=1", module=data)
    for layer, bank in own.chain.banks.items():
        for name in ("lora_A", "lora_B"):
            ours = getattr(bank, name)
            assert torch.equal(ours[0], getattr(selectors.chain.banks[layer], name)[0])
            assert torch.equal(ours[1:], getattr(experts.chain.banks[layer], name)[1:])
            assert not torch.equal(ours[0], getattr(experts.chain.banks[layer], name)[0])


def test_the_selectors_epoch_is_as_long_as_the_longest_experts() -> None:
    made = chain()
    [run] = made.reads(RunsDataModule([make_data(made.base, tasks=TASKS)])).runs
    assert [len(stream.batches) for stream in run.streams(0, False)] == [7, 7, 3, 7]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    trained([job(folder, *METHOD, SHORT_PROMPT, "trainer.max_epochs=2", tasks=TASKS, **SMALL)])
    return folder


def test_the_folder_is_a_chain(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "adapters").iterdir()) == sorted(["selector", *TASKS])
    settings = json.loads((finished / "chain.json").read_text())
    assert settings["names"] == {task: task for task in TASKS}
    assert settings["task_prompt"] == "{instruction} Task:"
    assert (finished / "confusion.png").is_file()


def test_figures_follow_from_the_predictions(finished: Path) -> None:
    """The oracle's perplexities, and the selector's accuracy by the names' whole log-likelihoods."""
    told, rows = metrics(finished), predictions(finished)
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task]
        loss = sum(row["loss"] * row["tokens"] for row in mine) / sum(row["tokens"] for row in mine)
        assert told[f"test/oracle/{task}/perplexity"] == pytest.approx(torch.tensor(loss).exp().item())
    asked = [row for row in rows if row["task"] == "selector"]
    right = [row["answer"] == f" {TASKS[row['candidates'].index(max(row['candidates']))]}" for row in asked]
    assert told["test/selector/top1"] == told["test/selector/accuracy"] == sum(right) / len(right)
    assert told["test/selector/top3"] == 1
    difference = told["test/routed/loss_token_weighted"] - told["test/oracle/loss_token_weighted"]
    assert told["test/routing_loss"] == pytest.approx(difference)


def test_the_base_is_scored_without_an_adapter(finished: Path) -> None:
    bare = any_method("method=zero_shot", base=language_model(dtype=torch.float64))
    data = make_data(bare.base, tasks=TASKS, **SMALL)
    make_trainer("+trainer.enable_progress_bar=false").test(bare, RunsDataModule([data]), verbose=False)
    [found] = bare.predictions["test"]
    loss = sum(p.loss * p.tokens for p in found) / sum(p.tokens for p in found)
    assert metrics(finished)["test/base/loss_token_weighted"] == pytest.approx(loss)


def test_a_perfect_selector_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = [task for task in range(3) for _ in range(4)]
    monkeypatch.setattr(routed_answers, "generated_choices", lambda *_: gold)
    trained([job(tmp_path, *METHOD, "method.selection=generate", SHORT_PROMPT, tasks=TASKS, **SMALL)])
    told = metrics(tmp_path)
    assert told["test/routing_loss"] == 0
    assert told["test/selector/f1"] == 1
    assert told["test/base/loss"] != pytest.approx(told["test/oracle/loss"])


def test_tasks_are_added_and_removed_without_the_others(finished: Path, tmp_path: Path) -> None:
    """One is added and one is left out; the experts that stay are the same files."""
    tasks = ["one", "free", "new"]
    trained([job(tmp_path, *METHOD, SHORT_PROMPT, f"method.start={finished}", tasks=tasks, **SMALL)])
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(["selector", *tasks])
    for task in ("one", "free"):
        for before in (finished / "adapters" / task).iterdir():
            assert (tmp_path / "adapters" / task / before.name).read_bytes() == before.read_bytes()
    for name in ("one", "free"):
        ours, theirs = (metrics(folder)[f"test/oracle/{name}/perplexity"] for folder in (tmp_path, finished))
        assert ours == pytest.approx(theirs)
    assert metrics(tmp_path)["best/one/optimizer_step"] == 0
    selector = Path("adapters", "selector", "adapter_model.safetensors")
    assert (tmp_path / selector).read_bytes() != (finished / selector).read_bytes()


def test_some_experts_are_trained_again(finished: Path, tmp_path: Path) -> None:
    again = ["method.train=[few]", f"method.start={finished}"]
    trained([job(tmp_path, *METHOD, SHORT_PROMPT, *again, "seed=3", tasks=TASKS, **SMALL)])
    files = {task: Path("adapters", task, "adapter_model.safetensors") for task in TASKS}
    changed = {t: (tmp_path / path).read_bytes() != (finished / path).read_bytes() for t, path in files.items()}
    assert changed == {"one": False, "few": True, "free": False}


def test_a_start_of_which_nothing_is_kept_is_refused(finished: Path, tmp_path: Path) -> None:
    [outcome] = train_jobs([job(tmp_path, *METHOD, f"method.start={finished}", tasks=["new", "newer"], **SMALL)])
    while isinstance(outcome, Exception) and outcome.__cause__ is not None:
        assert isinstance(outcome.__cause__, Exception)
        outcome = outcome.__cause__
    assert "of its tasks (one, few, free) none is kept" in str(outcome)


def test_chains_of_several_seeds_are_trained_side_by_side(tmp_path: Path) -> None:
    """Each as if alone, selection and all."""

    def of(way: str, seed: int) -> Job:
        return job(tmp_path / way / str(seed), *METHOD, SHORT_PROMPT, f"seed={seed}", tasks=TASKS, **SMALL)

    trained([of("together", 0), of("together", 5)])
    for seed in (0, 5):
        trained([of("apart", seed)])
        assert same(tmp_path / "together" / str(seed), tmp_path / "apart" / str(seed), 1e-8)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.fallback=other"], "method.fallback is 'other': choose base or one of one, few, free"),
        (["method.threshold=2"], "method.threshold is 2: give a probability"),
        (["method.selection=guess"], "method.selection is 'guess': choose exact or generate"),
        (["method.threshold=0.5", "method.selection=generate"], "needs probabilities"),
        (["method.train=[one]"], "give its folder as method.start"),
        (["method.train=one"], "give its folder as method.start"),
        (["+method.task_names.other=x"], "names other: the tasks are one, few, free"),
        (["method.names=[one,other,free]"], "the data's tasks are ['one', 'few', 'free']: give these alike"),
        (["method.selector_batch_size=0"], "method.selector_batch_size is 0"),
        (["method.selector_lr=0"], "method.selector_lr is 0: give a learning rate above 0"),
        (["method.selector_lr=1e-3", "optim.lr=[1e-3,1e-3,1e-3,1e-3]"], "optim.lr gives each adapter a rate"),
        (["method.start=/nowhere"], "holds no chain: chain.json is missing"),
    ],
)
def test_settings_that_can_not_be_followed(overrides: list[str], says: str, tmp_path: Path) -> None:
    [outcome] = train_jobs([job(tmp_path, *METHOD, *overrides, tasks=TASKS, **SMALL)])
    while isinstance(outcome, Exception) and not isinstance(outcome, LorachainsError):
        assert isinstance(outcome.__cause__, Exception)
        outcome = outcome.__cause__
    assert says in str(outcome)


@pytest.mark.parametrize("tasks", [["one"], ["one", "selector"]])
def test_tasks_that_make_no_chain(tasks: list[str], tmp_path: Path) -> None:
    [outcome] = train_jobs([job(tmp_path, *METHOD, tasks=tasks, **SMALL)])
    assert "data.tasks" in str(outcome)


def test_mixed_task_lora_is_lora_on_the_same_data(tmp_path: Path) -> None:
    """One adapter for all tasks tells each one's loss, too."""
    trained([job(tmp_path, "method=lora", "trainer.max_epochs=1", tasks=TASKS, **SMALL)])
    assert {f"test/{task}/loss" for task in TASKS} <= metrics(tmp_path).keys()
