"""The bare model is scored as it is; in-context learning changes nothing but the prompts."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException

from lorachains.data.demonstrations import demonstrated
from lorachains.evaluation import summarise
from lorachains.run_folder import RunFolder
from tests.runs import TIMES, any_method, fit, language_model, make_data, make_method, make_trainer, run

SEVERAL: dict[str, Any] = {"tasks": ["stub", "free"], "max_new_tokens": 4, "max_length": 200}


def kept(folder: Path) -> tuple[dict[str, Any], str]:
    """Metrics that aren't times or sizes, and predictions."""
    files = RunFolder(folder)
    metrics = {k: v for k, v in files.read_metrics().items() if not k.endswith((*TIMES, "icl/demonstrations"))}
    return metrics, files.predictions.read_text()


def test_zero_shot_is_lora_that_has_learned_nothing(tmp_path: Path) -> None:
    """The same predictions as of a LoRA whose B is zero; and nothing is trained or written but results."""
    base = language_model()
    before = {name: p.clone() for name, p in base.model.state_dict().items()}
    method = run(tmp_path, "method=zero_shot", base=base, data=SEVERAL)
    lora = make_method()
    trainer = fit(lora, "trainer.max_steps=1", **SEVERAL)
    for bank in lora.chain.banks.values():
        bank.lora_B.data.zero_()
    trainer.test(lora, make_data(lora.base, **SEVERAL), verbose=False)
    assert method.predictions["test"] == lora.predictions["test"]
    metrics = RunFolder(tmp_path).read_metrics()
    assert metrics["test/loss"] == summarise(method.predictions["test"][0], method.data.runs[0].tasks)["loss"]
    assert {"val/loss", "val/stub/accuracy", "test/free/accuracy", "test_last/loss"} <= metrics.keys()
    assert metrics["train/optimizer_steps"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "metrics.json", "predictions.jsonl"}
    assert all(torch.equal(before[name], p) for name, p in base.model.state_dict().items())


def test_no_demonstrations_are_zero_shot(tmp_path: Path) -> None:
    run(tmp_path / "zero", "method=zero_shot", data=SEVERAL)
    run(tmp_path / "none", "method=icl", "method.demonstrations=0", data=SEVERAL)
    run(tmp_path / "four", "method=icl", "method.demonstrations=4", data=SEVERAL)
    assert kept(tmp_path / "none") == kept(tmp_path / "zero")
    assert kept(tmp_path / "four")[0]["test/loss"] != kept(tmp_path / "zero")[0]["test/loss"]
    assert [RunFolder(tmp_path / f).read_metrics()["icl/demonstrations"] for f in ("none", "four")] == [0.0, 4.0]


def test_in_context_learning_is_zero_shot_on_longer_prompts(tmp_path: Path) -> None:
    method = run(tmp_path, "method=icl", "method.demonstrations=4", "seed=7", data=SEVERAL)
    data = make_data(method.base, **SEVERAL)
    data.setup()
    longer, _ = demonstrated(data, 4, 7, None)
    bare = any_method("method=zero_shot")
    make_trainer("+trainer.enable_progress_bar=false").test(bare, longer, verbose=False)
    assert bare.predictions["test"] == method.predictions["test"]
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert sorted(prompts) == sorted(row.example.prompt for row in longer.rows("test"))


def test_it_is_said_once_that_nothing_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lorachains"):
        run(tmp_path, "method=zero_shot")
    assert sum("nothing is trained" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("number", ["-1", "2.5", "many"])
def test_a_wrong_number_of_demonstrations(number: str) -> None:
    with pytest.raises(InstantiationException, match=r"method.demonstrations is .*: give a whole number, 0 or more"):
        any_method("method=icl", f"method.demonstrations={number}")


def test_several_runs_are_refused() -> None:
    with pytest.raises(InstantiationException, match="2 runs that train nothing"):
        any_method("method=zero_shot", seed=[0, 1])
