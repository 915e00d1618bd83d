"""`knots.jsonl` tells of each link what the run's own log, ledger and losses say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains.jobs import train_jobs
from lorachains.methods.links import NUMBERS, all_links, of_link, scalars
from lorachains.run_folder import RunFolder
from tests.jobs import job
from tests.jobs import links as told
from tests.runs import DIVERGING, Log, cola, fit, make_method, run

KNOTS = ["method=cola", "knots=at_steps", "knots.steps=[5,12]", "knots.ranks=[8,4,2]", "method.select=last"]
"""Links of 5, 7 and 9 optimizer steps; with the last epoch kept, the chain is still there to be measured."""
ENDS = [5, 12, 21]
SLICES = [(0, 8), (8, 12), (12, 14)]


@pytest.fixture(scope="module", params=["ledger", "merge"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, cola(run(folder, *KNOTS, f"knots.mode={request.param}"))


def updates(method: Any, layer: str) -> list[Tensor]:
    """Each link's ΔW in float64, from the saved adapter's own tensors."""
    own = {key: tensor[0].double() for key, tensor in method.chain.banks[layer].own_tensors().items()}
    a = torch.cat([own["ledger_A"], own["lora_A"]])
    b = torch.cat([own["ledger_B"] * own["ledger_scale"], own["lora_B"] * own["scaling"]], dim=1)
    return [b[:, i:j] @ a[i:j] for i, j in SLICES]


def test_a_line_for_each_link(made: tuple[Path, Any]) -> None:
    rows, method = told(made[0]), made[1]
    assert [row["link"] for row in rows] == [1, 2, 3]
    assert [row["optimizer_step"] for row in rows] == ENDS
    assert [row["rank"] for row in rows] == [8, 4, 2]
    assert all(list(row["layers"]) == list(method.chain.banks) for row in rows)


def test_the_numbers_are_those_of_the_updates(made: tuple[Path, Any]) -> None:
    rows, method = told(made[0]), made[1]
    for link, row in enumerate(rows):
        norms, wholes = [], []
        for layer, found in row["layers"].items():
            each = updates(method, layer)
            whole = torch.stack(each[: link + 1]).sum(0)
            norms.append(float(each[link].norm()))
            wholes.append(float(whole.norm()))
            values = torch.linalg.svdvals(whole)[: len(found["singular_values"])].tolist()
            assert found["singular_values"] == pytest.approx(values, rel=1e-4, abs=1e-6)
            assert (found["norm"], found["chain_norm"]) == pytest.approx((norms[-1], wholes[-1]), rel=1e-4)
        assert row["norm"] == pytest.approx(math.hypot(*norms), rel=1e-4)
        assert row["chain_norm"] == pytest.approx(math.hypot(*wholes), rel=1e-4)
        for key in ("effective_rank", *(["overlap_A", "overlap_B"] if link else [])):
            of_layers = [found[key] for found in row["layers"].values()]
            assert row[key] == pytest.approx(sum(of_layers) / len(of_layers))
            assert len(set(of_layers)) > 1
    assert "overlap_A" not in rows[0]


def test_losses_and_drifts_are_those_of_the_log(made: tuple[Path, Any]) -> None:
    """Each step is logged; the last link has no loss after it."""
    rows, log = told(made[0]), made[1].trainer.logger
    losses = log.of("train/loss")
    assert [row["loss_before"] for row in rows] == [losses[step - 1] for step in ENDS]
    assert [row["loss_after"] for row in rows] == [*(losses[step] for step in ENDS[:2]), None]
    assert [row["drift"] for row in rows] == [*log.of("knot/drift"), None]
    assert [row["merge_loss"] for row in rows] == [*log.of("knot/merge_loss"), None]


def test_what_is_logged_at_a_knot_is_what_is_told_at_the_end(made: tuple[Path, Any]) -> None:
    rows, log = told(made[0]), made[1].trainer.logger
    at_knots = [(step, metrics) for step, metrics in log.rows if "knot/link" in metrics]
    assert [step for step, _ in at_knots] == ENDS[:2]
    for (_, metrics), row in zip(at_knots, rows, strict=False):
        assert {key: metrics[f"knot/{key}"] for key in NUMBERS if key in row} == {
            key: row[key] for key in NUMBERS if key in row
        }
    final = RunFolder(made[0]).read_metrics()
    assert {key: final[f"knot/{key}"] for key in NUMBERS} == {key: rows[2][key] for key in NUMBERS}


def test_losses_are_the_logged_ones_next_to_the_knot() -> None:
    log = Log()
    method = cola(make_method(*KNOTS))
    fit(method, "trainer.log_every_n_steps=4", logger=log)
    logged = {step: metrics["train/loss"] for step, metrics in log.rows if "train/loss" in metrics}
    [rows] = all_links(method)
    assert [row["loss_before"] for row in rows] == [logged[4], logged[12], logged[20]]
    assert [row["loss_after"] for row in rows] == [logged[8], logged[16], None]


def test_each_adapter_has_a_line_of_its_own() -> None:
    log = Log()
    method = cola(make_method(*KNOTS, "+method.names=[one,two]"))
    fit(method, "trainer.max_epochs=1", logger=log, tasks=["one", "two"])
    [rows] = all_links(method)
    assert [(row["link"], row["adapter"]) for row in rows] == [(i, name) for i in (1, 2, 3) for name in ("one", "two")]
    for name, row in zip(("one", "two"), rows[:2], strict=True):
        after = [m[key] for step, m in log.rows if (key := f"train/loss/{name}") in m and step > row["optimizer_step"]]
        assert row["loss_after"] == after[0]
        assert log.of(f"knot/norm/{name}")[0] == row["norm"]
    assert rows[0]["norm"] != rows[1]["norm"]


def test_a_diverged_link_is_told_without_numbers() -> None:
    method = cola(make_method(*KNOTS))
    fit(method, "trainer.max_steps=14", "+trainer.limit_val_batches=1.0")
    next(iter(method.chain.banks.values())).lora_B.data[0, 0, 0] = math.nan
    [[row]] = of_link(method, 2)
    assert not set(NUMBERS) & row.keys()
    assert len(row["layers"]) == len(method.chain.banks) - 1
    assert scalars([row]) == {}
    assert set(NUMBERS) & of_link(method, 1)[0][0].keys()


def test_a_run_that_fails_leaves_the_others_theirs(tmp_path: Path) -> None:
    knots = ["method=cola", "knots=at_steps", "knots.steps=[3]", "trainer.max_epochs=2", "optim=sgd"]
    runs = {"good": ["optim.lr=1e-2"], "bad": DIVERGING}
    good, bad = train_jobs([job(tmp_path / name, *knots, *own, dtype="float32") for name, own in runs.items()])
    assert isinstance(good, dict)
    assert isinstance(bad, Exception)
    assert len(told(tmp_path / "good")) == 2
    assert told(tmp_path / "bad") == []


def test_no_lines_without_a_chain_and_none_left_of_an_earlier_run(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_knots([{"link": 1}])
    RunFolder(tmp_path).begin({}, resume=False, overwrite=True)
    assert not RunFolder(tmp_path).knots.exists()
    run(tmp_path, "method=lora", "trainer.max_epochs=1")
    assert not RunFolder(tmp_path).knots.exists()


def test_each_line_is_json_that_others_read(made: tuple[Path, Any]) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    for line in RunFolder(made[0]).knots.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
