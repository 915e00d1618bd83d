"""Jobs form a group if, and only if, their settings differ in nothing but what the adapters of a bank have each."""

from functools import cache
from itertools import product
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from lorachains.cli import settings_of
from lorachains.config import conf_dir
from lorachains.grouping import differing, group, lot, told, trunk, why_alone, why_apart
from tests.runs import settings as composed


@cache
def job(*overrides: str) -> dict[str, Any]:
    """The settings of `python -m lorachains.train`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return settings_of(compose("train", overrides=["model=tiny", *overrides]))


def jobs(*choices: list[str]) -> list[dict[str, Any]]:
    """All combinations, in a multirun's order."""
    return [job(*overrides) for overrides in product(*choices)]


TOGETHER = [
    ("seed=0", "seed=1"),
    ("data.seed=0", "data.seed=1"),
    ("data.order_seed=3", "data.order_seed=4"),
    ("data.task=leg_counting", "data.task=family_relationships"),
    ("optim.lr=1e-3", "optim.lr=5e-4"),
    ("optim.schedule=linear", "optim.schedule=constant"),
    ("optim.warmup=0", "optim.warmup=10"),
    ("optim.optimizer.weight_decay=0.0", "optim.optimizer.weight_decay=0.1"),
    ("+optim.optimizer.betas=[0.9,0.999]", "+optim.optimizer.betas=[0.9,0.95]"),
    ("adapter.lora_alpha=16", "adapter.lora_alpha=32"),
]
APART = [
    (("adapter.r=4", "adapter.r=8"), ["adapter.r"]),
    (("data.batch_size=4", "data.batch_size=8"), ["data.batch_size"]),
    (("data=superglue", "data=glue"), []),  # but for its task the same
    (("data=superglue", "data=reasoning_gym"), ["data._target_"]),
    (("data.tasks=[leg_counting]", "data.tasks=null"), ["data.tasks"]),
    (("trainer.max_epochs=1", "trainer.max_epochs=2"), ["trainer.max_epochs"]),
    (("model.seed=0", "model.seed=1"), ["model.seed"]),
    (("method.select=loss", "method.select=metric"), ["method.select"]),
    (("optim=adamw", "optim=sgd"), ["optim.optimizer._target_"]),
    (("+optim.optimizer.amsgrad=true", "+optim.optimizer.amsgrad=false"), ["optim.optimizer.amsgrad"]),
    (("method=lora", "method=cola"), ["knots._target_", "method._target_"]),
    (("adapter.use_rslora=false", "adapter.use_rslora=0"), ["adapter.use_rslora"]),  # not what was written
    (("+trainer.precision=32", "trainer.max_epochs=5"), ["trainer.precision"]),  # only one has it
]


@pytest.mark.parametrize(("a", "b"), TOGETHER)
def test_what_each_adapter_has_of_its_own_is_stacked(a: str, b: str) -> None:
    pair = [job(a), job(b)]
    assert pair[0] != pair[1]
    assert why_apart(*pair) == []
    assert group(pair) == [[0, 1]]


@pytest.mark.parametrize(("overrides", "keys"), APART, ids=lambda value: " ".join(value))
def test_anything_else_keeps_apart(overrides: tuple[str, str], keys: list[str]) -> None:
    pair = [job(overrides[0]), job(overrides[1])]
    assert sorted(why_apart(*pair)) == keys
    assert group(pair) == ([[0], [1]] if keys else [[0, 1]])


def test_groups_are_what_no_setting_keeps_apart() -> None:
    """Against the pairs, one by one: each job is in one group, with all those that nothing keeps it apart from."""
    methods, ranks = ["method=cola", "method=lora"], ["adapter.r=4", "adapter.r=8"]
    grid = jobs(methods, ranks, ["optim.lr=1e-3", "optim.lr=5e-4"], ["seed=0", "seed=1"])
    groups = group(grid)
    assert sorted(index for members in groups for index in members) == list(range(16))
    assert groups == sorted(sorted(members) for members in groups)
    of = {index: number for number, members in enumerate(groups) for index in members}
    for (i, a), (j, b) in product(enumerate(grid), repeat=2):
        assert (of[i] == of[j]) == (why_apart(a, b) == [])
    assert len(groups) == 4


def test_a_setting_that_the_method_repeats_is_named_once() -> None:
    grid = jobs(["optim.lr=1e-3", "optim.lr=5e-4"], ["seed=0", "seed=1", "seed=2"])
    assert differing(grid) == {"optim.lr": [1e-3, 5e-4], "seed": [0, 1, 2], "data.order_seed": [0, 1, 2]}


def test_what_is_told_of_many_values() -> None:
    assert told({"adapter.r": [4, 8]}) == "adapter.r (4, 8)"
    assert told({"a": [1], "seed": list(range(20))}, most=3) == "a (1), seed (0, 1, 2, … 20 values)"


def test_no_jobs() -> None:
    assert group([]) == []
    assert differing([]) == {}


def test_jobs_that_find_their_knots_by_their_losses_stay_apart() -> None:
    plateau = ["method=cola", "knots=plateau"]
    jobs = [settings_of(composed(*plateau, f"seed={seed}")) for seed in (0, 1)]
    chain_of_one = [settings_of(composed(*plateau, "knots.links=1", f"seed={seed}")) for seed in (0, 1)]
    assert group(jobs + chain_of_one) == [[0], [1], [2, 3]]
    assert "knots=plateau" in str(why_alone(jobs[0]))
    assert why_alone(chain_of_one[0]) is None


def test_jobs_that_merge_into_the_base_stay_apart() -> None:
    jobs = [settings_of(composed("method=cola", "knots.mode=merge", f"seed={seed}")) for seed in (0, 1)]
    chain_of_one = [settings_of(composed("method=lora", "knots.mode=merge", f"seed={seed}")) for seed in (0, 1)]
    assert group(jobs + chain_of_one) == [[0], [1], [2, 3]]


@pytest.mark.parametrize("method", ["full", "zero_shot", "icl"])
def test_jobs_without_adapters_stay_apart(method: str) -> None:
    """And go on from no other job, nor another from them."""
    alone = jobs([f"method={method}"], ["seed=0", "seed=1"])
    assert group([*alone, job()]) == [[0], [1], [2]]
    assert "has no adapters" in str(why_alone(alone[0]))
    assert "routers belong to one run" in str(why_alone(job("method=moa")))
    assert why_alone(job()) is None
    assert trunk(job("method=cola"), alone) is trunk(alone[0], [job()]) is None


def test_rows_keep_apart_where_the_vocabulary_is_pruned_to_them() -> None:
    """The order that they are trained in doesn't."""
    first = job("model.prune_vocab=true")
    assert why_apart(first, job("model.prune_vocab=true", "data.seed=1")) == ["data.seed"]
    assert why_apart(first, job("model.prune_vocab=true", "data.task=chain_sum")) == ["data.task"]
    assert why_apart(first, job("model.prune_vocab=true", "data.order_seed=7", "optim.lr=1e-5")) == []


def test_a_lot_has_what_is_trained_together_or_goes_on_from_it() -> None:
    lora = jobs(["method=lora"], ["seed=0", "seed=1"], ["optim.lr=1e-3", "optim.lr=1e-4"])
    cola = [job("method=cola", "knots=even", f"knots.links={links}", "seed=1") for links in (2, 3)]
    assert len({lot(one) for one in (*lora, *cola)}) == 1
    others = ("adapter.r=4", "data.task=acre", "data.seed=1", "data=superglue", "trainer.max_epochs=1", "method=full")
    assert len({lot(job("method=lora", other)) for other in others} | {lot(lora[0])}) == len(others) + 1
