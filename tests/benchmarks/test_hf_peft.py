"""The other side of the benchmarks does what it says: it trains, scores and generates as plain torch and PEFT do."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hf_peft as hf
import pytest
import torch
from hf_peft.adapters import with_random_adapters
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import set_seed

from lorachains.batch import Tokens
from lorachains.data.tokens import encode_eval, encode_train
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel, tiny
from tests.data.stub import examples, stub_module

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def lm() -> LanguageModel:
    return tiny(hidden_size=32)


@pytest.fixture
def rows(lm: LanguageModel) -> list[Tokens]:
    return [row.choices[0] for row in encode_train(lm.tokenizer, examples(12), 0, 64)]


def test_what_libraries_print_is_not_among_the_figures() -> None:
    """Not even where transformers says, when it is imported, how W&B is set."""
    own = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(Path(hf.__file__).parents[1])}
    made = subprocess.run([sys.executable, "-c", "import hf_peft"], env=own, capture_output=True, text=True, check=True)
    assert made.stdout == ""


def weights(lm: LanguageModel) -> dict[str, Tensor]:
    return {name: value.cpu().clone() for name, value in lm.model.state_dict().items()}


def adapter(lm: LanguageModel, folder: Path) -> Path:
    """A PEFT adapter that isn't zero, as `train` may start from."""
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, init_lora_weights=False)
    model = get_peft_model(tiny(hidden_size=32).model, config)
    model.save_pretrained(str(folder))
    return folder


def reference_losses(lm: LanguageModel, folder: Path, rows: list[Tokens], batch_size: int, lr: float) -> list[float]:
    """A plain loop without padding: token-mean loss, AdamW, a linear schedule, no clipping."""
    model = PeftModel.from_pretrained(tiny(hidden_size=32).model, folder, is_trainable=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    losses = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        parts = []
        for row in batch:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            parts.append(F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="none"))
        answers = sum(label != -100 for row in batch for label in row.labels[1:])
        loss = torch.cat(parts).sum() / answers
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_is_that_of_a_plain_loop(lm: LanguageModel, rows: list[Tokens], device: str, tmp_path: Path) -> None:
    before = weights(lm)
    start = adapter(lm, tmp_path)
    overrides = {"max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
    figures = hf.train(
        lm, rows, settings="default", batch_size=5, lr=1e-2, seed=0, device=device, epochs=1, warmup=0, record=True,
        start=start, overrides=overrides,
    )  # fmt: skip
    expected = reference_losses(lm, start, rows, batch_size=5, lr=1e-2)
    torch.testing.assert_close(figures["losses"], expected, rtol=1e-4, atol=1e-5)
    assert figures["loss"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert figures["steps"] == 3
    after = weights(lm)
    assert before.keys() == after.keys(), "the adapter is still in the model"
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_figures_of_steps(lm: LanguageModel, device: str) -> None:
    """Tokens are counted without padding and without the warm-up; times add up to no more than the wall's."""
    rows = [Tokens([1] * n, [-100] * (n - 1) + [1]) for n in (9, 5, 7, 3, 4, 8)]
    figures = hf.train(
        lm, rows, settings="default", batch_size=2, lr=1e-2, seed=0, device=device, steps=4, warmup=3,
        overrides={"train_sampling_strategy": "sequential"},
    )  # fmt: skip
    assert figures["steps"] == 4
    assert figures["tokens_per_second"] * figures["step_seconds"] == pytest.approx(9 + 5)  # the second epoch's first
    assert 0 < figures["step_seconds"] < figures["seconds"]
    assert (figures["peak_memory_bytes"] > 0) == (device == "cuda")
    assert figures["losses"] == [], "a loss was read that nobody asked for"


@pytest.mark.slow
def test_best_settings_train_alike(lm: LanguageModel, rows: list[Tokens], device: str, tmp_path: Path) -> None:
    start = adapter(lm, tmp_path)
    overrides = {"max_grad_norm": 0.0, "train_sampling_strategy": "sequential", "bf16": False}
    figures = hf.train(
        lm, rows, settings="best", batch_size=4, lr=1e-2, seed=0, device=device, epochs=1, warmup=1, record=True,
        start=start, overrides=overrides,
    )  # fmt: skip
    expected = reference_losses(lm, start, rows, batch_size=4, lr=1e-2)
    torch.testing.assert_close(figures["losses"], expected, rtol=1e-3, atol=1e-4)


def test_settings_do_not_outlive_a_call(lm: LanguageModel, rows: list[Tokens], device: str) -> None:
    """Accelerate keeps its state for the process: bf16 and back gives the first losses again."""

    def losses(**overrides: Any) -> Any:
        return hf.train(
            lm, rows, settings="default", batch_size=4, lr=1e-2, seed=1, device=device, steps=4, warmup=0,
            record=True, overrides=overrides,
        )["losses"]  # fmt: skip

    first, mixed, again = losses(), losses(bf16=True), losses()
    assert first == pytest.approx(again, rel=1e-5)
    assert mixed != pytest.approx(first, rel=1e-5)
    assert mixed == pytest.approx(first, rel=0.05)


def test_a_run_keeps_the_best_epoch(lm: LanguageModel, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored by a stand-in, which remembers the adapter that it saw: the test sees the best epoch's again."""
    data = stub_module(lm.tokenizer)
    script, seen = iter([0.2, 0.8, 0.8, 0.5]), []

    def accuracy(model: Any, rows: Any, tokenizer: Any, batch_size: int) -> float:
        seen.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters() if p.requires_grad]))
        return next(script)

    monkeypatch.setattr(hf.runs, "accuracy", accuracy)
    figures = hf.run(lm, data, settings="default", lr=1e-2, seed=0, device=device, epochs=3, warmup=2)
    assert (figures["val_accuracy"], figures["best_epoch"], figures["test_accuracy"]) == ([0.2, 0.8, 0.8], 2, 0.5)
    assert torch.equal(seen[3], seen[1])
    assert not torch.equal(seen[3], seen[2])
    assert figures["training"]["steps"] == 3 * -(-27 // 4)
    assert 0 < figures["evaluation_seconds"] + figures["training"]["step_seconds"] < figures["seconds"]


def test_a_run_scores_by_itself(lm: LanguageModel, device: str) -> None:
    figures = hf.run(lm, stub_module(lm.tokenizer), settings="default", lr=1e-2, seed=0, device=device, epochs=2)
    assert [score * 5 % 1 for score in figures["val_accuracy"]] == pytest.approx([0, 0])
    assert figures["test_accuracy"] * 6 % 1 == pytest.approx(0)


def test_accuracy_is_that_of_each_candidate_alone(lm: LanguageModel, device: str) -> None:
    """Candidates of different lengths, in batches that cut examples apart."""
    rows = encode_eval(lm.tokenizer, examples(10, candidates=(" by no means", " no", " yes")), 0, 64)
    model = lm.model.to(device)  # type: ignore[arg-type]

    @torch.no_grad()
    def likelihoods(text: Tokens) -> Tensor:
        ids = torch.tensor([text.input_ids], device=device)
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return torch.stack([logs[i, label] for i, label in enumerate(text.labels[1:]) if label != -100])

    def right(score: Any) -> float:
        scores = [[float(score(likelihoods(text))) for text in row.choices] for row in rows]
        return sum(one.index(max(one)) == row.example.gold for one, row in zip(scores, rows, strict=True)) / 10

    assert right(torch.mean) != right(torch.sum), "these examples don't tell a mean from a sum"
    assert hf.accuracy(model, rows, lm.tokenizer, 4) == pytest.approx(right(torch.mean))


def test_a_mixed_batch_generates_what_each_adapter_does(lm: LanguageModel, device: str) -> None:
    prompts = ["a", "bc d", "ef", "ghi jk", "l"]
    figures = hf.generate(lm, 2, prompts, 6, device=device, repeats=1)
    mixed, merged = figures["mixed"], figures["merged"]
    assert [mixed["tokens"][i] for i in (0, 2, 4)] == [merged["tokens"][i] for i in (0, 2, 4)]
    assert [mixed["tokens"][i] for i in (1, 3)] != [merged["tokens"][i] for i in (1, 3)]
    for one in (mixed, merged):
        assert one["tokens_per_second"] * one["seconds"] == pytest.approx(5 * 6)


def test_no_token_ends_a_generation(lm: LanguageModel, device: str) -> None:
    def texts() -> Any:
        return hf.generate(lm, 1, ["a"], 6, device=device, repeats=1)["merged"]["tokens"]

    free = texts()
    assert lm.model.generation_config is not None
    lm.model.generation_config.eos_token_id = list(range(len(lm.tokenizer)))  # any token would
    assert texts() == free


def test_one_adapters_step_begins_at_the_base_models_loss(lm: LanguageModel, rows: list[Tokens], device: str) -> None:
    figures = hf.mixed_training_step(lm, rows, settings="default", device=device, warmup=1, steps=3)
    assert figures["loss"] == pytest.approx(_loss(tiny(hidden_size=32).model, rows), rel=1e-4)
    assert figures["seconds"] > 0


@pytest.mark.parametrize("trainable", [False, True])
def test_xlora_of_one_adapter_is_that_adapter(
    lm: LanguageModel, rows: list[Tokens], device: str, trainable: bool
) -> None:
    """Its softmax over one adapter is 1: the adapter that was saved is the one that it runs."""
    before = weights(lm)
    figures = hf.xlora_step(lm, 1, rows, device=device, trainable_adapters=trainable, seed=5, warmup=0, steps=2)
    set_seed(5)
    expected = _loss(with_random_adapters(tiny(hidden_size=32).model, 1), rows)
    assert figures["loss"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(_loss(lm.model.cpu(), rows), rel=1e-3)
    assert figures["seconds"] > 0
    assert before.keys() == weights(lm).keys()


def test_xlora_of_equal_adapters_is_one_of_them(
    lm: LanguageModel, rows: list[Tokens], device: str, tmp_path: Path
) -> None:
    """Its router's weights add up to 1, whatever they are: loss and texts are those of the adapter alone."""
    start, prompts = adapter(lm, tmp_path), ["a", "bc d", "ef"]
    one, three = (hf.xlora_step(lm, n, rows, device=device, start=start, warmup=0, steps=1)["loss"] for n in (1, 3))
    assert one == pytest.approx(three, rel=1e-5)
    assert one != pytest.approx(_loss(tiny(hidden_size=32).model, rows), rel=1e-3)
    told = [hf.xlora_generate(lm, n, prompts, 6, device=device, start=start, repeats=1) for n in (1, 3)]
    assert told[0]["tokens"] == told[1]["tokens"]
    merged = PeftModel.from_pretrained(tiny(hidden_size=32).model, start).merge_and_unload()
    inputs = lm.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    merged.generation_config.eos_token_id = None
    expected = merged.generate(**inputs, max_new_tokens=6, do_sample=False)[:, -6:].tolist()
    assert told[1]["tokens"] == expected


def test_adapters_are_saved_whole(lm: LanguageModel, tmp_path: Path) -> None:
    """Those of several, too: by plain numbers PEFT takes the others' names for layers."""
    hf.generate(lm, 3, ["a"], 1, device="cpu", repeats=0, save=tmp_path)
    layers = len(list(lm.model.model.layers))
    for i in range(3):
        saved = load_file(tmp_path / hf.named(i) / "adapter_model.safetensors")
        assert len(saved) == layers * 2 * 2


def test_xlora_of_several_adapters(lm: LanguageModel, rows: list[Tokens], device: str) -> None:
    one, three = (hf.xlora_step(lm, n, rows, device=device, warmup=0, steps=1)["loss"] for n in (1, 3))
    assert one != pytest.approx(three, rel=1e-4)


@torch.no_grad()
def _loss(model: Any, rows: list[Tokens]) -> float:
    """The mean over all answer tokens, each text alone."""
    parts = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        parts.append(F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="none"))
    return float(torch.cat(parts).sum()) / sum(label != -100 for row in rows for label in row.labels[1:])


def test_what_cannot_be_measured_is_refused(lm: LanguageModel, rows: list[Tokens]) -> None:
    given: Any = {"batch_size": 4, "lr": 1e-3, "seed": 0, "device": "cpu"}
    with pytest.raises(LorachainsError, match="steps is None and epochs is None: give one"):
        hf.train(lm, rows, settings="default", **given)
    with pytest.raises(LorachainsError, match="settings is 'fast': give default, best or liger"):
        hf.train(lm, rows, settings="fast", steps=1, **given)
    with pytest.raises(LorachainsError, match="liger-kernel is not installed, or there is no GPU"):
        hf.train(lm, rows, settings="liger", steps=1, **given)
    with pytest.raises(LorachainsError, match="warmup is 10, but there are 3 steps"):
        hf.train(lm, rows, settings="default", epochs=1, **given)
    with pytest.raises(LorachainsError, match="has no candidates"):
        hf.run(lm, stub_module(lm.tokenizer, tasks=["free"]), settings="default", lr=1e-3, seed=0, device="cpu")
