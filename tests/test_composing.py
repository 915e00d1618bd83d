"""A config that is copied from another job's equals the one that Hydra composes, to the node `hydra`."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lorachains.cli import run_name
from lorachains.composing import Compositions
from lorachains.config import conf_dir
from lorachains.reproduce import sweeps

hydra_composes = partial(compose, "train", return_hydra_config=True)


@pytest.fixture(autouse=True)
def hydra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # what `told` sets doesn't stay
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


class Counted:
    """Hydra's composing, which counts the configs."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, overrides: list[str]) -> DictConfig:
        self.count += 1
        return hydra_composes(overrides)


def told(config: DictConfig) -> list[Any]:
    """All that a config tells, as it is and resolved, and whether it takes new keys."""
    made = deepcopy(config)
    made.hydra.job.id, made.hydra.job.num, made.hydra.runtime.output_dir = "0", 0, "runs/one"  # Hydra's, in a job
    HydraConfig.instance().set_config(made)
    flags = [(OmegaConf.is_struct(node), OmegaConf.is_readonly(node)) for node in (config, config.optim, config.hydra)]
    containers = [OmegaConf.to_container(config), OmegaConf.to_container(made, resolve=True)]
    return [*containers, flags, run_name(config)]


def test_it_tells_the_seed_and_the_rate() -> None:
    """What the other tests compare."""
    one, other = (told(hydra_composes(["model=tiny", f"seed={seed}"])) for seed in (0, 1))
    assert [ours != theirs for ours, theirs in zip(one, other, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize(("name", "size"), [("cola-table1", "smoke"), ("moa-table2", "smoke"), ("moa-table2", "small"),
                                            ("chain-of-lora-table3", "small")])  # fmt: skip
def test_a_sweeps_jobs_are_as_hydra_composes_them(name: str, size: str) -> None:
    """With numbers in all spellings; some rows' own settings, and their methods' files, have a rate too."""
    sweep = sweeps.load(name, size)
    job = sweep.jobs(sweep.rows[-1], sweep.columns[-1])[0].overrides
    rest = [override for override in job if not override.startswith(("seed=", "optim.lr="))]
    counted = Counted()
    configs = Compositions(counted)
    configs.config(["seed=0", *rest, "optim.lr=1e-4"])
    for seed, lr in (("3", "1e-3"), ("17", "5e-05"), ("1_0", "0")):
        overrides = [f"seed={seed}", *rest, f"optim.lr={lr}"]
        assert told(configs.config(overrides)) == told(hydra_composes(overrides))
    assert counted.count == 1


def test_seeds_and_rates_need_one_composition() -> None:
    counted = Counted()
    configs = Compositions(counted)
    jobs = [["model=tiny", f"optim.lr={lr}", f"seed={seed}"] for lr in ("1e-3", "5e-4") for seed in range(5)]
    made = [configs.config(job) for job in jobs]
    assert counted.count == 1
    assert [(config.optim.lr, config.seed) for config in made] == [(lr, s) for lr in (1e-3, 5e-4) for s in range(5)]
    assert [list(config.hydra.overrides.task) for config in made] == jobs
    assert len({run_name(config) for config in made}) == 10


def test_a_configs_own_changes_are_not_the_next_ones() -> None:
    configs = Compositions(hydra_composes)
    for seed in (0, 1, 2):
        config = configs.config(["model=tiny", f"seed={seed}"])
        assert config.checkpoint_every == 100
        config.checkpoint_every, config.hydra.overrides.task = 1, []


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        (["seed=1"], ["optim.lr=1"], 2),
        (["seed=1", "optim.lr=1"], ["optim.lr=1", "seed=1"], 2),  # their order is told
        (["seed=1", "seed=2"], ["seed=3", "seed=4"], 2),
        (["seed=1", "++seed=1"], ["seed=2", "++seed=1"], 2),
        (["seed=1", "++optim={lr: 3}", "optim.lr=1"], ["seed=2", "++optim={lr: 3}", "optim.lr=1"], 1),
        (["optim.lr=1", "++optim={lr: 1}"], ["optim.lr=2", "++optim={lr: 1}"], 2),
        (["optim.lr=${seed}", "seed=1"], ["optim.lr=${seed}", "seed=2"], 1),
        (["optim.lr=1", "++optim.lr=1"], ["optim.lr=2", "++optim.lr=1"], 2),
        (["seed=0", "~data.order_seed=0"], ["seed=0", "~data.order_seed=0"], 2),
        (["seed='1'"], ["seed=1"], 2),
        (["seed=true"], ["seed=null"], 2),
        (["seed=1", "optim=sgd"], ["seed=2", "optim=sgd"], 1),
        (["optim.lr=1", "method=full"], ["optim.lr=2", "method=full"], 1),
        (["optim.lr=1", "optim=sgd"], ["optim.lr=2", "optim=adagrad"], 2),
        (["seed=1", "hydra.job.config.override_dirname.exclude_keys=[seed]"],
         ["seed=2", "hydra.job.config.override_dirname.exclude_keys=[seed]"], 1),
        (["hydra.overrides.task=[a]", "seed=1"], ["hydra.overrides.task=[a]", "seed=2"], 1),
    ],
)  # fmt: skip
def test_only_numbers_that_are_given_once_are_shared(first: Sequence[str], second: Sequence[str], count: int) -> None:
    counted = Counted()
    configs = Compositions(counted)
    for overrides in (["model=tiny", *first], ["model=tiny", *second]):
        assert told(configs.config(overrides)) == told(hydra_composes(overrides))
    assert counted.count == count


@pytest.mark.parametrize(
    "wrong", ["seed=1,2", "seed=", "sead=1", "optim.lr=${", "optim=nosuch", "~optim.lr=2", "+seed=1", "seed.a=1"]
)
def test_hydra_tells_what_is_wrong(wrong: str) -> None:
    """In its own words, also after a job that is right."""
    configs = Compositions(hydra_composes)
    configs.config(["seed=0", "optim.lr=1"])
    said = []
    for composes in (configs.config, hydra_composes):
        try:
            said.append(told(composes(["seed=0", "optim.lr=1", wrong])))
        except HydraException as error:
            said.append([type(error), str(error)])
    assert said[0] == said[1]


def test_a_multiruns_jobs_are_as_hydra_composes_them() -> None:
    """What the program's own config has resolved (a time, say), and Hydra's own overrides, are those of all jobs."""
    loader = GlobalHydra.instance().config_loader()
    whole = loader.load_configuration("train", ["hydra.sweep.dir=a", "+at=${now:%f}", "model=tiny"], RunMode.MULTIRUN)
    assert whole.at
    hydra_loads = partial(loader.load_sweep_config, whole)
    configs = Compositions(hydra_loads)
    for seed in (0, 1, 2):
        job = ["model=tiny", f"seed={seed}", "+at=${now:%f}"]
        config = configs.config(job)
        assert told(config) == told(hydra_loads(job))
        assert OmegaConf.get_cache(config) == OmegaConf.get_cache(whole)
        assert config.at == whole.at
