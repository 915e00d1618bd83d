import logging
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir

from lorachains.config import conf_dir
from lorachains.data.module import TaskDataModule
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer
from tests.batches import rebuilt

from .stub import stub_module


def test_tasks_are_mixed_and_marked() -> None:
    module = stub_module(byte_tokenizer(), tasks=["stub", "free"])
    module.setup("fit")
    assert [task.name for task in module.tasks] == ["stub", "free"]
    assert module.counts == {split: {"stub": n, "free": n} for split, n in [("train", 27), ("val", 5), ("test", 6)]}
    rows = module.rows("train")
    places = [[rows[row] for _, row in batch] for batch in module.train_dataloader().batches]
    assert Counter(row.task for batch in places for row in batch) == {0: 27, 1: 27}
    assert any(len({row.task for row in batch}) == 2 for batch in places)
    for batch in chain(module.val_dataloader(), module.test_dataloader()):
        assert [module.tasks[row.task].name for row in batch.rows] == [row.example.task for row in batch.rows]
        assert (not batch.prompts) == (batch.rows[0].example.task == "stub")


def test_answers_end_where_all_tasks_say_so() -> None:
    module = stub_module(byte_tokenizer(), tasks=["stub", "free"])
    module.setup("fit")
    assert module.stop is None
    first, second = module.tasks
    module.tasks = [replace(first, stop="\n"), replace(second, stop="\n")]
    assert module.stop == "\n"
    module.tasks = [first, replace(second, stop="\n")]
    assert module.stop is None


def test_order_seed_changes_the_order_and_seed_the_rows() -> None:
    def texts(**changes: Any) -> list[list[int]]:
        module = stub_module(byte_tokenizer(), **changes)
        module.setup()
        return [text.input_ids for batch in module.train_dataloader() for text in rebuilt(batch)]

    assert texts() == texts()
    assert texts() != texts(order_seed=1)
    assert sorted(texts()) == sorted(texts(order_seed=1))
    assert sorted(texts()) != sorted(texts(seed=1))


def test_the_same_rows_in_another_order() -> None:
    """`in_order` is the module of another order seed, without reading or encoding anything again."""
    module = stub_module(byte_tokenizer())
    module.setup()
    again, asked = module.in_order(1), stub_module(byte_tokenizer(), order_seed=1)
    asked.setup()
    assert all(again.rows(split) is module.rows(split) for split in ("train", "val", "test"))
    ours, theirs, first = ([rebuilt(batch) for batch in data.train_dataloader()] for data in (again, asked, module))
    assert ours == theirs != first


def test_loaders_leave_the_global_random_state_alone() -> None:
    module = stub_module(byte_tokenizer())
    module.setup()
    before = torch.get_rng_state()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_cut_prompts_are_counted_and_reported_once_a_split(caplog: pytest.LogCaptureFixture) -> None:
    module = stub_module(byte_tokenizer(), max_length=30)
    with caplog.at_level(logging.INFO, "lorachains"):
        module.setup("fit")
        module.setup("test")
    cut = {
        split: sum(len(f"{e.prompt}{max(e.candidates, key=len)}") > 30 for e in examples)
        for split, examples in (("val", module.splits[0].val), ("test", module.splits[0].test))
    }
    assert {split: module.truncated[split] for split in cut} == cut
    assert module.truncated["train"] > 0
    messages = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    assert messages[0] == f"train: {module.truncated['train']} of 27 prompts cut to 30 tokens"
    assert len(messages) == sum(count > 0 for count in module.truncated.values())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size is -1"),
        ({"max_length": 0}, "data.max_length is 0"),
        ({"test_size": 0}, "data.test_size is 0"),
        ({"tasks": []}, r"data.tasks is \[\]"),
        ({"tasks": ["a", "a"]}, r"data.tasks is \['a', 'a'\]"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(LorachainsError, match=fault):
        stub_module(byte_tokenizer(), **changes)


def _from_config(*overrides: str) -> TaskDataModule:
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = compose(overrides=["+seed=5", *overrides])
    module = hydra.utils.instantiate(config.data, tokenizer=byte_tokenizer())
    assert isinstance(module, TaskDataModule)
    return module


def test_reasoning_gym_from_the_command_line() -> None:
    module = _from_config("+data=reasoning_gym", "data.train_size=9", "data.val_size=4", "data.test_size=5")
    assert (module.seed, module.order_seed, module.eval_batch_size) == (0, 5, 32)
    module.setup()
    assert module.counts["train"] == {module.task_names[0]: 9}


def test_several_tasks_and_options_from_the_command_line() -> None:
    sizes = ["data.train_size=9", "data.val_size=4", "data.test_size=5"]
    options = "data.options={chain_sum: {max_terms: 2, max_digits: 1}}"
    module = _from_config("+data=reasoning_gym", "data.tasks=[chain_sum,syllogism]", options, *sizes)
    module.setup()
    assert module.counts["val"] == {"chain_sum": 4, "syllogism": 4}
    assert all(example.prompt.count(" + ") <= 1 for example in module.splits[0].train)


@pytest.mark.parametrize(("group", "name"), [("superglue", "rte"), ("glue", "sst2")])
def test_official_files_from_the_command_line(data_root: Path, group: str, name: str) -> None:
    module = _from_config(
        f"+data={group}", f"data.root={data_root}", "data.train_size=20", "data.val_size=10", "data.test_size=6"
    )
    module.setup()
    assert [module.counts[split] for split in ("train", "val", "test")] == [{name: 20}, {name: 10}, {name: 6}]


def test_a_list_of_tasks_replaces_the_task(data_root: Path) -> None:
    assert _from_config("+data=superglue", "data.tasks=[cb,copa]").task_names == ["cb", "copa"]
    assert _from_config("+data=superglue", "data.tasks=cb").task_names == ["cb"]
    assert _from_config("+data=superglue", "data.task=wsc").task_names == ["wsc"]
