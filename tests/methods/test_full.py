"""Full fine-tuning is a plain torch loop over transformers' own model; what it saves, transformers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, get_linear_schedule_with_warmup

from lorachains.data.tokens import Serving
from lorachains.errors import LorachainsError
from lorachains.methods import Full
from lorachains.packing import packs
from tests.methods.test_lora import padded
from tests.methods.test_resume import stopped_and_resumed
from tests.runs import PER_EPOCH, Log, any_method, fit, language_model, make_data, make_trainer, outcome, run
from tests.tiny import ARCHITECTURES

FULL = ["method=full", "optim.lr=5e-3"]
SGD = ["method=full", "optim=sgd", "optim.lr=0.1"]


def by_hand(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, steps: int, accumulate: int = 1, clip: float | None = None
) -> dict[str, Tensor]:
    """Trains on the stub's data with a linear schedule; the weights at its end."""
    data = make_data(language_model())
    data.setup()
    data.serve(Serving(), by_length=not packs(model))
    order, rows = data.train_dataloader().batches, data.rows("train")
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    made = 0
    while made < steps:
        for i, batch in enumerate(order):
            ids, mask, labels = padded([rows[row].choices[0] for _, row in batch])
            out = model(input_ids=ids, attention_mask=mask, labels=labels)
            loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            assert torch.allclose(loss.float(), out.loss.float(), rtol=1e-5)  # which transformers takes in float32
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0 or i + 1 == PER_EPOCH:
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                made += 1
            if made == steps:
                break
    return {name: p.detach() for name, p in model.named_parameters()}


def check(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: dict[str, Tensor], tolerance: float) -> None:
    """All weights are the same, but for so much of how far they have moved."""
    assert ours.keys() == theirs.keys() == start.keys()
    moved = sum(float((theirs[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert moved > 0
    for name in start:
        assert (ours[name] - theirs[name]).norm() <= tolerance * moved


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_step_is_a_plain_loops(arch: str) -> None:
    base, twin = (language_model(arch, torch.float64) for _ in range(2))
    start = weights(twin.model)
    theirs = by_hand(twin.model, torch.optim.SGD(twin.model.parameters(), lr=0.1), steps=1)
    fit(any_method(*SGD, base=base), "trainer.max_steps=1")
    check(weights(base.model), theirs, start, 1e-7)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (3, 0.2)])
def test_three_epochs_are_a_plain_loops(accumulate: int, clip: float | None) -> None:
    base, twin = (language_model("llama", torch.float64, tie_word_embeddings=True) for _ in range(2))
    start = weights(twin.model)
    optimizer = torch.optim.AdamW(twin.model.parameters(), lr=1e-3, weight_decay=0.0)
    theirs = by_hand(twin.model, optimizer, 3 * -(-PER_EPOCH // accumulate), accumulate, clip)
    log = Log()
    fit(
        any_method("method=full", "optim.lr=1e-3", base=base), f"trainer.accumulate_grad_batches={accumulate}",
        f"trainer.gradient_clip_val={clip or 'null'}", logger=log,
    )  # fmt: skip
    check(weights(base.model), theirs, start, 1e-4)  # where a gradient is near 0, Adam makes steps of its rounding
    assert log.of("train/lr")[0] == pytest.approx(1e-3)
    assert (len(log.of("train/gradient_norm")) > 0) == bool(clip)


@pytest.mark.parametrize(
    ("kills", "overrides"),
    [
        ([("before a batch", 3), ("after validation", 14)], []),
        ([("in the test", 21)], ["optim=sgd", "optim.optimizer.momentum=0.9", "trainer.gradient_clip_val=0.5"]),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(kills: Any, overrides: list[str], tmp_path: Path) -> None:
    run(tmp_path / "whole", *FULL, *overrides)
    stopped_and_resumed(tmp_path / "stopped", *FULL, *overrides, kills=kills)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("arch", ["llama", "opt", "bloom"])
def test_plain_transformers_loads_what_is_saved(arch: str, tmp_path: Path) -> None:
    base = language_model(arch, tie_word_embeddings=True)
    start = weights(base.model)
    run(tmp_path, *FULL, base=base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("stub 3?", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base.model.eval()(ids).logits)
    assert any(not torch.equal(p, start[name]) for name, p in model.named_parameters())
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # tied to the embeddings  # noqa: SIM118


def test_the_best_epoch_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summaries, seen = Full.adapter_summaries, dict[int, dict[str, Tensor]]()

    def rigged(self: Full, split: str) -> list[dict[str, float]]:
        step = self.trainer.global_step
        if split == "val":
            seen[step] = weights(self.model)
        return [{**summary, "accuracy": float(split == "val" and step == 14)} for summary in summaries(self, split)]

    monkeypatch.setattr(Full, "adapter_summaries", rigged)
    run(tmp_path, *FULL)
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert sorted(seen) == [7, 14, 21]
    assert all(torch.equal(saved[name], weight) for name, weight in seen[14].items())
    assert not all(torch.equal(saved[name], weight) for name, weight in seen[21].items())


def test_updates_below_half_precision_are_kept() -> None:
    """In bfloat16 a weight near 1 moves by 0.0078 or not at all; a run at 1e-6 moves every norm's weight by less."""
    base = language_model()
    start = weights(base.model)
    fit(any_method("method=full", "optim.lr=1e-6", base=base), "trainer.max_epochs=1")
    moved = [(p - start[name]).abs() for name, p in weights(base.model).items() if "norm" in name]
    assert all(0 < float(by.max()) < 1e-4 for by in moved)


def test_mixed_precision_trains_float32_weights() -> None:
    """As on a GPU: the gradients are those of float32 but for bfloat16's rounding, and so are the weights."""
    ends, start = [], weights(language_model().model)
    for precision in ("bf16-mixed", "32-true"):
        base = language_model()
        fit(any_method(*SGD, base=base), "trainer.max_epochs=1", f"+trainer.precision={precision}")
        assert {p.dtype for p in base.model.parameters()} == {torch.float32}
        ends.append(weights(base.model))
    check(ends[0], ends[1], start, 0.02)
    assert not torch.equal(ends[0]["lm_head.weight"], ends[1]["lm_head.weight"])


def test_answers_are_those_of_the_weights_also_where_training_is_mixed() -> None:
    """Free ones too, from a cache of one precision."""
    data = {"tasks": ["stub", "free"], "max_new_tokens": 4}
    method = any_method(*FULL)
    found = []
    for precision in ("bf16-mixed", "32-true"):
        trainer = make_trainer("+trainer.enable_progress_bar=false", f"+trainer.precision={precision}")
        trainer.test(method, make_data(method.base, **data), verbose=False)
        found.append(method.predictions["test"])
    assert found[0] == found[1]


def test_auto_precision_computes_as_the_weights_are_on_the_cpu() -> None:
    assert make_trainer("+trainer.precision=auto").precision == make_trainer().precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InstantiationException, match=r"loses small updates .* needs model.dtype=float32"):
        any_method(*FULL, base=language_model(dtype=dtype))


def test_several_runs_are_refused() -> None:
    with pytest.raises(InstantiationException, match="2 runs can't share them"):
        any_method(*FULL, seed=[0, 1])


def test_a_divided_base_is_refused() -> None:
    method, trainer = any_method(*FULL), make_trainer("trainer.devices=2", "trainer.strategy=fsdp2")
    method.trainer = trainer
    with pytest.raises(LorachainsError, match="method=full has none: use ddp"):
        method.setup("fit")


def test_another_models_checkpoint_is_refused() -> None:
    state = any_method(*FULL, base=language_model("opt")).state_dict()
    with pytest.raises(LorachainsError, match="of another model than this run's"):
        any_method(*FULL).load_state_dict(state)


def test_a_gradient_is_held_no_longer_than_it_is_needed() -> None:
    """It is as large as the model."""
    method = any_method(*FULL)
    fit(method, "trainer.max_steps=2")
    assert isinstance(method, Full)
    assert method._gradient == ()
