"""Each file in `sweeps/` composes in each size, and says which runs make which cell."""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.reproduce import sweeps
from lorachains.reproduce.sweeps import Job, Overrides, Part, Sweep, expanded, load, read

SWEEPS = [(name, size) for name in sweeps.names() for size in sweeps.SIZES]
MOA_TABLE = """
paper: moa
title: in-domain test sets
minutes: {smoke: 1}
select: {over: [], by: loss}
metric: test/{row}/perplexity
model: [model=tiny]
data: []
each: ["seed=0,1"]
rows: {FINANCE: [], MEDICINE: []}
columns:
  LoRA, PPL: [method=lora]
  LoRA, ROUGE-L: {overrides: [method=lora], metric: "test/{row}/rougeL"}
sizes: {smoke: {}}
"""


@pytest.fixture(scope="module")
def composed() -> Iterator[dict[Overrides, DictConfig]]:
    """What was composed so far, by its overrides; Hydra is initialised."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield {}


def cells(sweep: Sweep) -> list[tuple[Part, Part]]:
    return list(product(sweep.rows, sweep.columns))


def compose_all(sweep: Sweep, places: Iterable[tuple[Part, Part]], composed: dict[Overrides, DictConfig]) -> None:
    """A job of each place."""
    for job in {sweep.jobs(row, column)[0].overrides for row, column in places} - composed.keys():
        composed[job] = compose("train", overrides=list(job))
        instantiate(composed[job].method, _partial_=True)  # checks the adapter, the knots and the optimizer


def settings(job: Job) -> tuple[frozenset[str], frozenset[tuple[str, Overrides]]]:
    return frozenset(job.overrides), frozenset(job.start.items())


@pytest.mark.parametrize(("name", "size"), SWEEPS)
def test_rows_and_columns_compose(name: str, size: str, composed: dict[Overrides, DictConfig]) -> None:
    sweep = load(name, size)
    most = max(len(sweep.rows), len(sweep.columns))
    compose_all(sweep, islice(zip(cycle(sweep.rows), cycle(sweep.columns), strict=False), most), composed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), SWEEPS)
def test_all_cells_compose(name: str, size: str, composed: dict[Overrides, DictConfig]) -> None:
    sweep = load(name, size)
    compose_all(sweep, cells(sweep), composed)


@pytest.mark.parametrize(("name", "size"), SWEEPS)
def test_each_cell_has_runs_of_its_own(name: str, size: str) -> None:
    """As many as seeds and what validation chooses from; columns that differ in their metric share them."""
    sweep = load(name, size)
    seen: dict[Any, tuple[str, str]] = {}
    for row, column in cells(sweep):
        jobs = sweep.jobs(row, column)
        chosen = {tuple(o for o in job.overrides if o.partition("=")[0] in sweep.over) for job in jobs}
        seeds = {override for job in jobs for override in job.overrides if override.startswith("seed=")}
        assert len(jobs) == len(set(map(settings, jobs))) == len(chosen) * max(1, len(seeds))
        for job in jobs:
            place = settings(job), sweep.shown(row, column)
            assert seen.setdefault(place, (row.label, column.label)) == (row.label, column.label)
    assert sweep.published is None or sweep.published.is_file()


@pytest.mark.parametrize("name", sweeps.names())
def test_the_products_are_the_same_jobs(name: str) -> None:
    sweep = load(name, "small")
    jobs = {
        frozenset(job.overrides) for row, column in cells(sweep) for job in sweep.jobs(row, column) if not job.start
    }
    products = [frozenset(job) for grid in sweep.grids() for job in expanded(grid)]
    assert len(products) == len(set(products))
    assert set(products) == jobs


def test_figures_show_the_runs_of_tables() -> None:
    """So they cost nothing more."""
    for figure, table in (("cola-figure2", "cola-table3"), ("cola-figure3", "cola-table4")):
        drawn, printed = (
            {job.overrides for row, column in cells(sweep) for job in sweep.jobs(row, column)}
            for sweep in (load(figure, "paper"), load(table, "paper"))
        )
        assert drawn == printed


@pytest.mark.parametrize("size", sweeps.SIZES)
def test_activated_chains_differ_from_ordinary_ones_in_nothing_else(size: str) -> None:
    sweep = load("chain-of-lora-activated", size)
    kinds = {
        kind: {
            tuple(o for o in job.overrides if not o.startswith("method.activated="))
            for row, column in cells(sweep) if row.label.endswith(kind)
            for job in sweep.jobs(row, column)
        }
        for kind in ("ordinary", "selector activated", "all activated")
    }  # fmt: skip
    assert kinds["ordinary"] == kinds["selector activated"] == kinds["all activated"]


def test_a_row_replaces_what_all_have() -> None:
    sweep = load("cola-table1", "paper")
    finetune = next(row for row in sweep.rows if row.label == "Finetune")
    rates = {o for job in sweep.jobs(finetune, sweep.columns[0]) for o in job.overrides if o.startswith("optim.lr=")}
    assert rates == {f"optim.lr={rate}" for rate in ("1e-06", "5e-06", "8e-06", "1e-05", "5e-05", "8e-05")}


def test_a_label_may_name_what_a_run_has_measured(tmp_path: Path) -> None:
    """MoA's Table 2: a row is no run of its own but a domain of one."""
    (tmp_path / "moa-table2.yaml").write_text(MOA_TABLE)
    sweep = read(tmp_path / "moa-table2.yaml", "smoke")
    (finance, _), (ppl, rouge) = sweep.rows, sweep.columns
    assert sweep.jobs(finance, ppl) == sweep.jobs(finance, rouge)
    assert (sweep.shown(finance, ppl), sweep.shown(finance, rouge)) == (
        "test/FINANCE/perplexity", "test/FINANCE/rougeL",
    )  # fmt: skip
    assert sweep.table == "table2"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": None}, "rows and columns are mappings"),
        ({"columns": {"LoRA": "${nowhere}"}}, "nowhere"),
        ({"minutes": {"small": 1}}, "has no 'smoke' for size=smoke"),
        ({"minutes": {"smoke": "abc"}}, "minutes of smoke is 'abc': give a number above 0"),
        ({"minutes": 3}, "minutes is 3: give a mapping"),
        ({"select": {"over": [], "by": "foo"}}, "select.by is 'foo': choose metric, loss, or a key of metrics.json"),
        ({"each": 3}, "each is 3: give a list of overrides"),
        ({"base": "nothing"}, "nothing.yaml"),
        ({"against": {"LoRA, PPL": "nobody"}}, "against names 'nobody', which is no row or column"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(change: dict[str, object], says: str, tmp_path: Path) -> None:
    whole = MOA_TABLE.replace("minutes: {smoke: 1}", "") if "minutes" in change else MOA_TABLE
    file = tmp_path / "moa-table2.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.create(whole), change), file)
    with pytest.raises(LorachainsError, match=f"moa-table2.yaml: .*{says}"):
        read(file, "smoke")


@pytest.mark.parametrize(("name", "size", "says"), [("cola", "small", "choose all or some of chain-of-lora-activated"),
                                                    ("cola-table1", "big", "choose paper, small, smoke")])  # fmt: skip
def test_unknown_names(name: str, size: str, says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        load(name, size)


def test_what_is_wrong_with_given_keys_is_not_the_files_fault() -> None:
    with pytest.raises(LorachainsError, match=r"cola-table3\.yaml, with keys in place of its own: minutes is 3"):
        load("cola-table3", "smoke", {"minutes": 3})


@pytest.mark.parametrize("folder", ["/a,b", "/my data (1)", "/it's", "C:\\data\\", "null", "/ä {x} [y] \\'z"])
@pytest.mark.usefixtures("composed")
def test_any_folder_can_hold_the_data(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACHAINS_DATA_ROOT", folder)
    sweep = load("cola-table3", "small")
    jobs = sweep.jobs(sweep.rows[0], sweep.columns[0])
    assert {compose("train", list(job.overrides)).data.root for job in jobs} == {folder}


def test_an_override_that_hydra_cannot_read() -> None:
    with pytest.raises(LorachainsError, match="is no override that Hydra can read"):
        expanded(["seed=[0"])


def test_a_table_on_data_of_ones_own() -> None:
    """What is given takes the place of the file's keys, whatever the size, and may refer to others."""
    given: dict[str, Any] = {
        "data": ["data=instructions", "data.path=mine.jsonl"],
        "domains": {"LAW": [], "TAX": [], "Average": {"name": ""}},
    }
    sweep = load("moa-table2", "small", given)
    assert [part.label for part in sweep.rows] == ["LAW", "TAX", "Average"]
    assert {"data=instructions", "data.path=mine.jsonl", "model=smollm2-135m"} < set(sweep.overrides)
    assert not any("language" in override for override in sweep.overrides)
    chain = load("chain-of-lora-table1", "small", {"rows": {"LAW": "${chain}"}, "against": {}})
    assert "method=chain_of_lora" in chain.rows[0].overrides
    with pytest.raises(LorachainsError, match=r"keys has 'domain', which moa-table2 hasn't: against, base, columns"):
        load("moa-table2", "small", {"domain": {}})
