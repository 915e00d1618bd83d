"""An encoder classifier sees what a selector sees, trains as a plain loop does, and tells what a selector tells."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorachains.data.runs import RunsDataModule
from lorachains.errors import LorachainsError
from lorachains.jobs import train_jobs
from lorachains.methods import Classifier
from lorachains.models import load_encoder
from tests.encoders import save_encoder
from tests.jobs import job, metrics, predictions, trained
from tests.methods.test_selectors import SMALL, TASKS, of_kind
from tests.runs import any_method, fit, language_model, make_data

SETTINGS = ["method=classifier", "optim.lr=5e-3", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


def test_a_step_is_a_plain_loops(encoder: str) -> None:
    """Cross-entropy of the labels over transformers' own logits."""
    steps = ["method=classifier", "optim=sgd", "optim.lr=0.1", f"method.encoder={encoder}", "method.decoys=0"]
    method = any_method(*steps, base=language_model(), names=TASKS)
    assert isinstance(method, Classifier)
    data = method.reads(RunsDataModule([make_data(language_model(), tasks=TASKS)]))
    twin = load_encoder(encoder, TASKS, 0)
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.1)
    fit(method, *(s for s in steps if s.startswith("trainer")), "trainer.max_steps=1", module=data)
    rows = [data.runs[0].rows("train")[row] for _, row in next(iter(data.train_dataloader().batches))]
    texts = [row.example.prompt for row in rows]
    labels = torch.tensor([TASKS.index(row.example.answer.strip()) for row in rows])
    logits = twin.model.train()(**twin.tokenizer(texts, padding=True, return_tensors="pt")).logits
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    for name, weight in twin.model.named_parameters():
        assert torch.allclose(dict(method.model.named_parameters())[name], weight, atol=1e-6), name


def test_it_tells_what_a_selector_tells(encoder: str, tmp_path: Path) -> None:
    """Of the same rows, and all that an encoder can tell; what is saved answers so in plain transformers."""
    trained([of_kind("selector", tmp_path / "lora")])
    trained([job(tmp_path / "run", *SETTINGS, f"method.encoder={encoder}", tasks=TASKS, **SMALL)])
    ours, theirs = metrics(tmp_path / "run"), metrics(tmp_path / "lora")
    selects = {key for key in theirs if "/selector/" in key and "generated" not in key}
    assert selects == {key for key in ours if "/selector/" in key}
    rows, asked = predictions(tmp_path / "run"), predictions(tmp_path / "lora")
    assert {row["source"]: row["answer"] for row in rows} == {row["source"]: row["answer"] for row in asked}
    folder = tmp_path / "run" / "classifier"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(TASKS))
    for row in rows:
        with torch.no_grad():
            logits = model(**tokenizer(row["prompt"], return_tensors="pt")).logits[0]
        assert row["candidates"] == pytest.approx(logits.log_softmax(0).tolist(), abs=1e-5)
    assert ours["test/selector/accuracy"] == pytest.approx(ours["test/accuracy"])
    assert "train/flops" not in ours
    assert ours["train/flops_6n"] > 0


def test_it_reads_the_request_without_template_answer_or_what_is_too_long(encoder: str) -> None:
    method = any_method("method=classifier", f"method.encoder={encoder}", base=language_model(), names=TASKS)
    data = make_data(language_model(), tasks=TASKS, max_length=24)
    data.source.template = "<<{instruction}>>"  # type: ignore[attr-defined]
    data.setup()
    given = {row.example.source: row.example for row in data.rows("test")}
    for name, example in given.items():
        object.__setattr__(example, "prompt", f"<<{example.prompt}>>")
        assert given[name].prompt.startswith("<<")
    [run] = method.reads(RunsDataModule([data])).runs
    for row in run.rows("test"):
        asked = given[row.example.source].prompt[2:-2]
        for label, text in enumerate(row.choices):
            *ids, last = text.input_ids
            assert last == label
            assert language_model().tokenizer.decode(ids) == asked[-23:]
            assert text.cut == (len(asked) > 23)
        assert row.example.gold == TASKS.index(given[row.example.source].task)
    assert any(row.cut for row in run.rows("test"))
    assert all(len(row.choices) == 1 for row in run.rows("train"))


def test_a_resumed_run_is_the_uninterrupted_one(encoder: str, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"method.encoder={encoder}"]
    for folder in ("one", "other"):
        trained([job(tmp_path / folder, *settings, tasks=TASKS, **SMALL)])
    (tmp_path / "other" / "metrics.json").unlink()  # as if it was ended before its files were written
    trained([job(tmp_path / "other", *settings, "resume=true", tasks=TASKS, **SMALL)])
    assert metrics(tmp_path / "one") == metrics(tmp_path / "other")
    assert predictions(tmp_path / "one") == predictions(tmp_path / "other")


@pytest.mark.parametrize(("name", "says"), [(".", "lacks config.json"), ("bert-base-uncased", "hub can't be reached")])
def test_encoders_that_can_not_be_had(name: str, says: str, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"method.encoder={name}"]
    [found] = train_jobs([job(tmp_path, *settings, "overwrite=true", tasks=TASKS, **SMALL)])
    while isinstance(found, Exception) and not isinstance(found, LorachainsError):
        assert isinstance(found.__cause__, Exception)
        found = found.__cause__
    assert f"method.encoder is '{name}': " in str(found)
    assert says in str(found)
