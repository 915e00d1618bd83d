import json
import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import hydra
import pytest
from datasets import Dataset
from hydra import compose, initialize_config_dir

from lorachains.config import conf_dir
from lorachains.data.hub import HubSet
from lorachains.data.instruction_sets import FIREFLY
from lorachains.data.module import TaskDataModule
from lorachains.data.statistics import token_counts
from lorachains.data.tokens import NO_TASK
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer

_SPLITS = ("train", "val", "test")


def _module(*overrides: str) -> TaskDataModule:
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = compose(overrides=["+seed=5", *overrides])
    module = hydra.utils.instantiate(config.data, tokenizer=byte_tokenizer())
    assert isinstance(module, TaskDataModule)
    return module


def _own(tmp_path: Path, *overrides: str, tasks: tuple[str, ...] = ("a", "b"), n: int = 20) -> TaskDataModule:
    """A user's file of `n` rows a task, one of which has a long answer."""
    rows: list[dict[str, Any]] = [
        {"task": task, "input": f"{task} {i}", "output": [f"{i}", f"no. {i}"]} for task in tasks for i in range(n)
    ]
    rows[0]["output"] = "x" * 300
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _module("+data=instructions", f"data.path={path}", *overrides)


def test_a_users_file_is_all_there_is_to_say(tmp_path: Path) -> None:
    module = _own(tmp_path)
    module.setup()
    assert module.task_names == ["a", "b"]
    assert module.counts == {"train": {"a": 12, "b": 12}, "val": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    splits = module.splits[1]
    [example] = [e for e in splits.train + splits.val + splits.test if e.prompt == "b 7\n"]
    assert (example.task, example.answer, example.references, example.candidates) == ("b", "7", ("7", "no. 7"), ())


def test_sizes_are_caps_for_each_task(tmp_path: Path) -> None:
    whole, capped = _own(tmp_path), _own(tmp_path, "data.train_size=5", "data.test_size=3")
    for module in (whole, capped):
        module.setup()
    assert capped.counts == {"train": {"a": 5, "b": 5}, "val": {"a": 4, "b": 4}, "test": {"a": 3, "b": 3}}
    for more, less in zip(whole.splits, capped.splits, strict=True):
        assert all(getattr(more, split)[: len(getattr(less, split))] == getattr(less, split) for split in _SPLITS)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("data.task=b", ["b"]),
        ("data.tasks=[c,a]", ["c", "a"]),
        ("data.tasks=a", ["a"]),
        ("data.exclude=[b]", ["a", "c"]),
    ],
)
def test_tasks_are_chosen_and_left_out_and_keep_their_splits(override: str, names: list[str], tmp_path: Path) -> None:
    tasks = ("a", "b", "c")
    chosen, every = _own(tmp_path, override, tasks=tasks), _own(tmp_path, tasks=tasks)
    for module in (chosen, every):
        module.setup()
    assert chosen.task_names == names
    assert chosen.splits == [every.splits[tasks.index(name)] for name in names]


def test_answers_are_generated_and_graded_only_if_asked_for(tmp_path: Path) -> None:
    quiet, asked = _own(tmp_path), _own(tmp_path, "data.generate=true")
    for module in (quiet, asked):
        module.setup()
    assert all(row.prompt is None for row in quiet.rows("val"))
    assert all(row.prompt is not None for row in asked.rows("val"))
    example = asked.splits[1].test[0]
    assert list(asked.tasks[0].metrics) == ["rougeL", "exact_match"]
    assert [[metric(text, example) for metric in asked.tasks[0].metrics.values()] for text in example.references] == [
        [1.0, 1.0],
        [1.0, 1.0],
    ]


def test_rows_with_long_answers_are_left_out_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = _own(tmp_path, "data.max_length=100")
    with caplog.at_level(logging.WARNING, "lorachains"):
        module.setup()
    assert sum(module.counts[split]["a"] for split in _SPLITS) == 19
    assert "rows left out: their answers don't fit into data.max_length=100 tokens" in caplog.text
    with pytest.raises(LorachainsError, match=r"rows.jsonl:1: the answer has 301 tokens, too many"):
        _own(tmp_path, "data.max_length=100", "data.long_answers=refuse").setup()
    with pytest.raises(LorachainsError, match=r"no train row of a, b fits into data.max_length"):
        _own(tmp_path, "data.max_length=2").setup()


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("data.task=c", "there is no task c: choose data.tasks and data.exclude of a, b"),
        ("data.exclude=[c]", "there is no task c"),
        ("data.exclude=[a,b]", "data.exclude leaves out all tasks"),
        ("data.exclude=abc", "there is no task abc"),
        ("data.generate=no", "data.generate is 'no': give true or false"),
        ("data.tasks=[]", r"data.tasks is \[\]: give one name or more, or null"),
        ("data.columns=input", "data.columns is 'input'"),
        ("data.train_size=0", "data.train_size is 0"),
        ("data.long_answers=cut", "data.long_answers is 'cut'"),
        ("data.template=alpaca", "data.template is 'alpaca'"),
        ("data.mix=task", "data.mix is 'task'"),
        ("data.path=null", "give data.path, a file or a folder of rows, or data.hub"),
        ("data.hub=owner/name", "give data.path, a file or a folder of rows, or data.hub"),
        ("data.columns.input=x", "data.columns.input is 'x'"),
    ],
)
def test_bad_settings_are_refused(override: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(hydra.errors.InstantiationException, match=fault) as error:
        _own(tmp_path, override)
    assert isinstance(error.value.__cause__, LorachainsError)


def test_files_without_rows_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(hydra.errors.InstantiationException, match="the data set has no rows"):
        _module("+data=instructions", f"data.path={tmp_path}")


def test_half_a_character_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "x", "output": "y"}\n{"input": "x\\ud83d", "output": "y"}\n')
    with pytest.raises(hydra.errors.InstantiationException, match=r"a.jsonl:2: field .input. is .x\\+ud83d"):
        _module("+data=instructions", f"data.path={tmp_path}")


def _unlabelled(tmp_path: Path, *overrides: str) -> TaskDataModule:
    """Labelled rows, and such as have null for a label or none: of other texts, and of texts of labelled rows."""
    whole: list[dict[str, Any]] = [{"task": t, "input": f"{t} {i}", "output": "x"} for t in "ab" for i in range(20)]
    free: list[dict[str, Any]] = [{"task": None, "input": f"free {i}", "output": "y"} for i in range(6)]
    free += [{"input": f"A  {i}", "output": "y"} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*free, *whole]))
    return _module("+data=instructions", f"data.path={path}", *overrides)


def test_rows_without_a_label_are_trained_on_if_they_may_be(tmp_path: Path) -> None:
    """Behind all others, which stay where they are; never a text that is validated or tested on."""
    whole, free = _own(tmp_path, "data.train_size=11"), _unlabelled(tmp_path, "data.unlabelled=true")
    free.setup()
    rows = free.rows("train")
    assert free.unlabelled == 6 + 12 == sum(row.task == NO_TASK for row in rows)
    assert [row.task == NO_TASK for row in rows] == [False] * 24 + [True] * 18
    held = {row.example.prompt for split in _SPLITS[1:] for row in free.rows(split)}
    assert not held & {row.example.prompt.replace("A  ", "a ") for row in rows}
    assert free.task_names == ["a", "b"]
    assert all(row.task >= 0 for split in _SPLITS[1:] for row in free.rows(split))
    plain = _unlabelled(tmp_path, "data.unlabelled=true", "data.train_size=5")
    plain.setup()
    assert [row.example for row in plain.rows("train")[-5:]] == [row.example for row in rows[24:29]]
    whole.setup()
    for more, less in zip(free.splits, whole.splits, strict=True):
        assert [e.prompt for e in more.test] == [e.prompt for e in less.test], "labelled rows stay where they are"


def test_an_empty_cell_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("task,input,output\n" + "".join(f"{'ab'[i % 2] if i < 20 else ''},{i},x\n" for i in range(25)))
    free = _module("+data=instructions", f"data.path={path}", "data.unlabelled=true")
    free.setup()
    assert (free.unlabelled, free.task_names) == (5, ["a", "b"])
    with pytest.raises(hydra.errors.InstantiationException, match=r"rows.csv:22: the task label is ''"):
        _module("+data=instructions", f"data.path={path}")


def test_rows_without_a_label_are_refused_if_they_may_not_be(tmp_path: Path) -> None:
    with pytest.raises(hydra.errors.InstantiationException, match=r"rows.jsonl:1: field 'task' is null"):
        _unlabelled(tmp_path)
    with pytest.raises(hydra.errors.InstantiationException, match=r"data.unlabelled is 3"):
        _unlabelled(tmp_path, "data.unlabelled=3")


def test_rows_without_a_label_go_by_their_files_names(tmp_path: Path) -> None:
    for name in ("x", "y"):
        rows = [{"instruction": f"{name} {i}", "input": "", "output": "o"} for i in range(10)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    assert _module("+data=instructions", f"data.path={tmp_path}").task_names == ["x", "y"]


@pytest.mark.parametrize(
    ("overrides", "tasks", "rows"),
    [(["firefly"], 21, 35580), (["moa"], 8, 16759), (["moa", "data.language=en"], 8, 17692), (["superni"], 39, 29249)],
)
def test_real_files_are_read_whole_and_split_by_text(
    overrides: list[str], tasks: int, rows: int, data_root: Path
) -> None:
    name, *more = overrides
    module = _module(f"+data={name}", f"data.root={data_root}", "data.train_size=20", "data.test_size=5", *more)
    source: Any = module.source
    assert (len(module.task_names), len(source.records)) == (tasks, rows)
    loaded = [source.load(task, module.sizes, 0)[1] for task in module.task_names]
    prompts = [{e.prompt for splits in loaded for e in getattr(splits, split)} for split in _SPLITS]
    assert not any(a & b for a, b in combinations(prompts, 2))
    assert [len(splits.train) for splits in loaded] == [20] * tasks
    assert [len(splits.test) for splits in loaded] == [5] * tasks


def test_the_definition_changes_prompts_and_nothing_else(data_root: Path) -> None:
    place = ["+data=superni", f"data.root={data_root}", "data.task=task1508_wordnet_antonyms"]
    told, alone = _module(*place), _module(*place, "data.superni.definition=false")
    for module in (told, alone):
        module.setup()
    with_, without = ([e for split in _SPLITS for e in getattr(m.splits[0], split)] for m in (told, alone))
    assert [e.source for e in with_] == [e.source for e in without]
    assert all(a.prompt.startswith("Given an adjective") for a in with_)
    assert all(a.prompt.endswith(f"\n{b.prompt}") for a, b in zip(with_, without, strict=True))


def test_firefly_of_the_hub_gives_its_rows_as_they_are() -> None:
    rows = [{"kind": "NLI", "input": "a", "target": "b"}]
    [row] = FIREFLY.official(Dataset.from_list(rows), "train")
    assert row.values == rows[0]
    assert row.source == "hub:YeungNLP/firefly-train-1.1M/default/train#0"


def test_rows_of_the_hub_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled by their own column, or by their set's name."""
    sets = {
        ("owner/one", "default"): [{"instruction": f"add {i}", "output": str(i)} for i in range(10)],
        ("owner/two", "en"): [{"task": "spell", "instruction": f"spell {i}", "output": str(i)} for i in range(10)],
    }
    monkeypatch.setattr(HubSet, "_load", lambda self, split: Dataset.from_list(sets[self.repository, self.config]))
    module = _module("+data=instructions", "data.hub=[owner/one,'owner/two:en']")
    assert module.task_names == ["one", "spell"]
    module.setup()
    assert module.splits[1].train[0].source.startswith("hub:owner/two/en/train#")
    for wrong in ("3", "[]"):
        with pytest.raises(hydra.errors.InstantiationException, match=r"data.hub is .*: give a set's name, or several"):
            _module("+data=instructions", f"data.hub={wrong}")


def test_token_counts_are_those_of_the_texts(tmp_path: Path) -> None:
    module = _own(tmp_path)
    module.setup()
    a, b = token_counts(module)
    assert (a.task, a.rows, b.rows) == ("a", (12, 4, 4), (12, 4, 4))
    texts = [(len(f"b {i}\n"), len(f"{i}") + 1) for i in range(20)]  # a byte a token, and the end
    assert b.prompt == (sum(p for p, _ in texts) / 20, 5)
    assert b.answer == (sum(n for _, n in texts) / 20, 3)
    assert sum(b.tokens) == sum(p + n for p, n in texts)
    assert a.answer[1] == 301
