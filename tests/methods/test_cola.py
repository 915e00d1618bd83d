"""COLA is LoRA up to its first knot; after one, a fresh link trains under a fresh optimizer over the same function."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.methods import Cola, Lora
from lorachains.optim import build
from tests.adapters import inputs
from tests.runs import DIVERGING, Log, States, cola, fit, language_model, make_method, run, same

TOTAL = 21


def at(*steps: int) -> list[str]:
    return ["method=cola", "knots=at_steps", f"knots.steps={list(steps)}"]


def live(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if ".lora_" in key}


@pytest.mark.parametrize("mode", ["ledger", "merge"])
def test_cola_is_lora_until_its_first_knot(mode: str) -> None:
    lora, chain = States(), States()
    fit(make_method(), callbacks=[lora])
    fit(make_method(*at(10), f"knots.mode={mode}"), callbacks=[chain])
    assert list(chain.after) == list(range(1, TOTAL + 1))
    assert all(same(live(lora.after[step]), live(chain.after[step])) for step in range(1, 11))
    assert not any(same(live(lora.after[step]), live(chain.after[step])) for step in range(11, TOTAL + 1))


def test_cola_without_knots_is_lora_to_the_end() -> None:
    lora, chain = (
        make_method("adapter.lora_dropout=0.1"),
        make_method("method=cola", "knots=none", "adapter.lora_dropout=0.1"),
    )
    fit(lora)
    fit(chain)
    assert same(lora.state_dict(), chain.state_dict())


def test_merge_and_ledger_train_the_same_chain() -> None:
    """In float64, to rounding."""
    states = []
    for mode in ("ledger", "merge"):
        method = make_method(*at(5, 12), f"knots.mode={mode}", base=language_model(dtype=torch.float64))
        fit(method)
        states.append(live(method.state_dict()) | {k: v for k, v in method.state_dict().items() if ".ledger_" in k})
    for key, value in states[0].items():
        assert (value - states[1][key]).norm() <= 1e-8 * value.norm().clamp(min=1e-3), key


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_each_knot_is_tied_once_at_its_optimizer_step(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tied: list[tuple[int, int]] = []
    original = Cola.tie_knot

    def counting(self: Cola, probe: TokenBatch) -> None:
        tied.append((self.trainer.global_step, self.trainer.fit_loop.epoch_loop.total_batch_idx))
        original(self, probe)

    monkeypatch.setattr(Cola, "tie_knot", counting)
    log = Log()
    method = make_method(*at(2, 4))
    fit(method, f"trainer.accumulate_grad_batches={accumulate}", logger=log)
    per_epoch = -(-7 // accumulate)
    batches = [min(7, (step % per_epoch) * accumulate) + 7 * (step // per_epoch) for step in (2, 4)]
    assert [step for step, _ in tied] == method.chain.knots == [2, 4]
    assert [batch for _, batch in tied] == batches
    assert [(step, row["knot/link"]) for step, row in log.rows if "knot/link" in row] == [(2, 1), (4, 2)]


@pytest.mark.parametrize(
    ("policy", "factor"),
    [
        ("continue", lambda i, start, end: 1 - (start + i) / TOTAL),
        ("restart", lambda i, start, end: 1 - i / (end - start)),
        (
            "rewarm",
            lambda i, start, end: (
                (i + 1) / 4 if start and i < 3 else 1 - (i - 3 * bool(start)) / (end - start - 3 * bool(start))
            ),
        ),
    ],
)
def test_rates_at_knots(policy: str, factor: Any) -> None:
    """Links of 5, 7 and 9 optimizer steps; a warm-up of 3 where there is one."""
    log = Log()
    fit(make_method(*at(5, 12), f"knots.lr={policy}", "knots.warmup=3"), logger=log)
    expected = [factor(i, s, e) for s, e in ((0, 5), (5, 12), (12, 21)) for i in range(e - s)]
    assert log.of("train/lr") == pytest.approx([5e-3 * f for f in expected])
    assert log.of("link") == [1] * 5 + [2] * 7 + [3] * 9


@pytest.mark.parametrize(("policy", "scales"), [("ratio", [2.0, 2.0, 2.0]), ("alpha", [2.0, 4.0, 8.0])])
@pytest.mark.parametrize("mode", ["ledger", "merge"])
def test_ranks_step_down(policy: str, scales: list[float], mode: str) -> None:
    method = make_method(*at(5, 12), "knots.ranks=[8,4,2]", f"knots.scaling={policy}", f"knots.mode={mode}")
    trainer = fit(method)
    assert trainer.global_step == TOTAL
    assert (method.chain.ranks, method.chain.rank) == ([8, 4], 2)
    for bank in method.chain.banks.values():
        assert bank.ledger_scale[0].tolist() == [scales[0]] * 8 + [scales[1]] * 4
        assert bank.scaling.item() == scales[2]
        assert bank.lora_B.shape[2] == 2


def test_after_a_knot_nothing_is_left_of_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither moments nor Adam's step count, until the next step makes them anew."""
    at_knots: list[tuple[str, str]] = []
    original = Cola.tie_knot

    def spying(self: Cola, probe: TokenBatch) -> None:
        assert self.trainer.optimizers[0].state_dict()["state"]
        original(self, probe)
        fresh = build(self.optims, self.chain.flat)
        at_knots.append((str(self.trainer.optimizers[0].state_dict()), str(fresh.state_dict())))

    class AdamSteps(L.Callback):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
            self.seen += steps

    monkeypatch.setattr(Cola, "tie_knot", spying)
    adam = AdamSteps()
    fit(make_method(*at(5, 12)), callbacks=[adam])
    assert len(at_knots) == 2
    assert all(ours == fresh for ours, fresh in at_knots)
    assert adam.seen == [*range(1, 6), *range(1, 8), *range(1, 10)]


@pytest.mark.parametrize(("optim", "first"), [("adamw", False), ("adamw", True), ("sgd", False), ("adagrad", False)])
def test_a_link_is_a_lora_run_of_its_own_on_the_merged_base(optim: str, first: bool) -> None:
    """Constant rate, knot at 7: the second link equals a LoRA run over weights with the first one in them.

    That run begins from the second link's `A` and sees the batches of the second epoch on.
    """
    init = "first" if first else "fresh"
    states = States()
    shared = ["optim.schedule=constant", f"optim={optim}"]
    method = make_method(*at(7), f"knots.init={init}", *shared, base=language_model(dtype=torch.float64))
    fit(method, callbacks=[states])
    merged = language_model(dtype=torch.float64)
    for layer, bank in method.chain.banks.items():
        update = bank.ledger_B[0] @ torch.diag(bank.ledger_scale[0]) @ bank.ledger_A[0]
        merged.model.get_parameter(f"{layer}.weight").data += update
    second = make_method(*shared, base=merged)
    fresh = make_method(*at(7), base=language_model(dtype=torch.float64))
    if not first:
        fresh.chain.tie(0)
        fresh.chain.extend()
    for layer, bank in second.chain.banks.items():
        bank.lora_A.data = fresh.chain.banks[layer].lora_A.detach().clone()

    class SkipFirstEpoch(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            loader: Any = trainer.train_dataloader
            loader.load_state_dict({"streams": [{**loader.state_dict()["streams"][0], "epoch": 1}]})

    fit(second, "trainer.max_epochs=2", callbacks=[SkipFirstEpoch()])
    for layer, bank in second.chain.banks.items():
        ours, theirs = method.chain.banks[layer].lora_B[0], bank.lora_B[0]
        assert (ours - theirs).norm() <= 1e-7 * theirs.norm()


def test_a_base_that_does_not_compute_the_same_twice_is_noticed() -> None:
    base = language_model()
    base.model.get_output_embeddings().register_forward_hook(lambda m, x, y: y + 0.01 * torch.rand_like(y))
    with pytest.raises(LorachainsError, match=r"knot 1 after optimizer step 5 moved the logits by .*torch.float32"):
        fit(make_method(*at(5), base=base))


def test_the_tolerance_is_the_users() -> None:
    base = language_model()
    base.model.get_output_embeddings().register_forward_hook(lambda m, x, y: y + 0.01 * torch.rand_like(y))
    fit(make_method(*at(5), "knots.tolerance=1.0", base=base))


@pytest.mark.parametrize("mode", ["ledger", "merge"])
def test_drift_is_logged_and_is_rounding(mode: str) -> None:
    log = Log()
    fit(make_method(*at(5, 12), f"knots.mode={mode}", base=language_model(dtype=torch.float64)), logger=log)
    assert len(log.of("knot/drift")) == 2
    assert all(drift < 1e-12 for drift in log.of("knot/drift"))
    assert all(loss < 1e-12 for loss in log.of("knot/merge_loss"))


def test_a_bfloat16_merge_warns_with_its_loss(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    with caplog.at_level(logging.WARNING, "lorachains"):
        fit(make_method(*at(5), "knots.mode=merge", base=language_model(dtype=torch.bfloat16)), logger=log)
    [lost] = log.of("knot/merge_loss")
    [record] = [r for r in caplog.records if "merging" in r.getMessage()]
    assert f"merging link 1 into bfloat16 weights lost {100 * lost:.1f}% of its update" in record.getMessage()
    assert 1e-3 < lost < 1


def test_a_bfloat16_ledger_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lorachains"):
        fit(make_method(*at(5), base=language_model(dtype=torch.bfloat16)))
    assert not caplog.records


def test_divergence_is_one_clear_error_also_at_a_knot() -> None:
    with pytest.raises(LorachainsError, match="diverged"):
        fit(make_method(*at(5), *DIVERGING))


class Logits(L.Callback):
    """Keeps the logits of some tokens as they are at each validation."""

    def __init__(self) -> None:
        self.at: dict[int, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Lora) -> None:  # type: ignore[override]
        self.at[trainer.global_step] = logits(pl_module.model)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=inputs(3)).logits


@pytest.mark.parametrize("mode", ["ledger", "merge"])
@pytest.mark.parametrize("best", [7, 14, 21])
def test_the_best_epoch_comes_back_with_its_knots(
    best: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Knots before, at and after each epoch's end. PEFT's reading of the run's adapter is that epoch, too."""
    summaries = Lora.adapter_summaries

    def rigged(self: Lora, split: str) -> list[dict[str, float]]:
        score = float(split == "val" and self.trainer.global_step == best)
        return [{**summary, "accuracy": score} for summary in summaries(self, split)]

    monkeypatch.setattr(Lora, "adapter_summaries", rigged)
    seen = Logits()
    method = run(
        tmp_path, *at(3, 7, 10, 17), f"knots.mode={mode}", callbacks=[seen], base=language_model(dtype=torch.float64)
    )
    assert sorted(seen.at) == [7, 14, 21]
    assert torch.equal(logits(method.model), seen.at[best])
    assert cola(method).chain.knots == [k for k in (3, 7, 10, 17) if k < best]
    peft = PeftModel.from_pretrained(language_model(dtype=torch.float64).model, str(tmp_path / "adapter"))
    assert torch.allclose(logits(peft), seen.at[best], atol=1e-9)


@pytest.mark.parametrize("select", ["metric", "loss", "last"])
def test_the_criterion_is_the_users(select: str, tmp_path: Path) -> None:
    method = run(tmp_path, f"method.select={select}", "optim.lr=5e-2")
    log = method.trainer.logger
    assert isinstance(log, Log)
    steps = [7, 14, 21]
    low = [-loss for loss in log.of("val/loss")[:3]]
    criteria: dict[str, list[Any]] = {
        "metric": list(zip(log.of("val/accuracy")[:3], low, strict=True)),  # the loss decides between equal ones
        "loss": low,
        "last": [*steps],
    }
    assert method.best.best[0].step == steps[max(range(3), key=criteria[select].__getitem__)]


def test_each_adapter_returns_to_its_own_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter 0 to the first epoch, adapter 1 to the second; a knot lies between the two."""
    summaries = Lora.adapter_summaries

    def rigged(self: Lora, split: str) -> list[dict[str, float]]:
        return [
            {**summary, "accuracy": float(self.trainer.global_step == step)}
            for summary, step in zip(summaries(self, split), (14, 28), strict=True)
        ]

    monkeypatch.setattr(Lora, "adapter_summaries", rigged)
    states = States()
    method = make_method(*at(5, 20), names=["one", "two"], base=language_model(dtype=torch.float64))
    losses: dict[int, dict[str, float]] = {}

    class Losses(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Lora) -> None:  # type: ignore[override]
            losses[trainer.global_step] = {p.source: p.loss for p in pl_module.predictions["val"][0]}

    trainer = fit(method, callbacks=[states, Losses()], tasks=["one", "two"])
    method.best.restore(method)
    trainer.validate(method, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    for prediction in method.predictions["val"][0]:
        step = 14 if prediction.task == "one" else 28
        assert prediction.loss == pytest.approx(losses[step][prediction.source], rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (at(21), r"knot after optimizer step 21, but the run has 21 \(7 an epoch\)"),
        (["method=cola", "knots=at_epochs", "knots.epochs=[3]"], "knot after optimizer step 21"),
        ([*at(5), "knots.ranks=[8,4,2]"], "3 ranks for a chain of 2 links"),
    ],
)
def test_bad_plans_are_refused_before_the_first_step(overrides: list[str], message: str) -> None:
    states = States()
    with pytest.raises(LorachainsError, match=message):
        fit(make_method(*overrides), callbacks=[states])
    assert not states.after
