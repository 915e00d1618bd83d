"""`model.prune_vocab=true` from training to an adapter that works on the whole model."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.conftest import Train
from tests.cli.test_evaluate import Evaluate, evaluate  # noqa: F401  a fixture
from tests.models.test_pruning import _model, _tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model on disk, whose tokenizer has tokens that the rows beside it don't use."""
    base = _model("llama", True, _tokenizer())
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"task": t, "input": f"the {t} {i}", "output": "low"} for t in ("cat", "mat") for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_adapter_works_on_the_whole_model(folder: Path, train: Train, evaluate: Evaluate) -> None:  # noqa: F811
    data = ["data=instructions", f"data.path={folder}/rows.jsonl", "data.generate=true"]
    model = ["model=hf", f"model.name={folder}/model", "model.dtype=float32"]
    done = train(*model, *data, "model.prune_vocab=true", "optim.lr=0.1", "hydra.run.dir=run")
    assert done.code == 0, done.err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["vocabulary/tokens"] < metrics["vocabulary/tokens_unpruned"]

    code, pruned, err = evaluate("run=run")
    assert code == 0, err
    assert pruned == pytest.approx({key: metrics[key] for key in pruned}, rel=1e-5)
    code, whole, err = evaluate("run=run", "model.prune_vocab=false", "output=whole")
    assert code == 0, err
    assert whole["test/perplexity"] > pruned["test/perplexity"]

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "run/adapter")
    tokenizer = AutoTokenizer.from_pretrained("model")
    for row in map(json.loads, Path("whole/predictions.jsonl").read_text().splitlines()):
        prompt = tokenizer(row["prompt"]).input_ids
        ids = [*tokenizer(row["prompt"] + row["answer"]).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            chances = peft(torch.tensor([ids])).logits[0].log_softmax(-1)
        answer = [float(chances[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
        assert row["loss"] == pytest.approx(-sum(answer) / len(answer), rel=1e-5)
