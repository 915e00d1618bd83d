"""A LoRA run is PEFT's LoRA with torch's optimizer and transformers' schedule, in a loop written by hand."""

import logging
from typing import Any

import lightning as L
import pytest
import torch
from hydra.errors import InstantiationException
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lorachains.batch import IGNORED, Tokens, pack
from lorachains.chain import Chain
from lorachains.data.module import TaskDataModule
from lorachains.data.streams import TrainLoader
from lorachains.data.tokens import Serving, collate_train
from lorachains.errors import LorachainsError
from lorachains.packing import packs
from lorachains.routing import HardRoute
from tests.adapters import TARGETS, WITH_BIAS, peft_twin
from tests.runs import (
    DIVERGING,
    PER_EPOCH,
    Log,
    States,
    fit,
    language_model,
    make_data,
    make_method,
    same,
    side_by_side,
)

EPOCHS = 3


def padded(texts: list[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and labels as a Hugging Face model takes them."""
    ids, labels = ([torch.tensor(getattr(t, name)) for t in texts] for name in ("input_ids", "labels"))
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True), mask, pad_sequence(labels, batch_first=True, padding_value=-100)


def by_hand(twin: PeftModel, accumulate: int = 1, clip: float | None = None) -> PeftModel:
    """AdamW at 5e-3 with a linear schedule over three epochs of the stub's data."""
    base = twin.get_base_model()
    assert isinstance(base, PreTrainedModel)
    data = make_data(language_model())
    data.setup()
    data.serve(Serving(), by_length=not packs(base))
    order, rows = data.train_dataloader().batches, data.rows("train")
    trained = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, EPOCHS * -(-PER_EPOCH // accumulate))
    for _ in range(EPOCHS):
        for i, batch in enumerate(order):
            ids, mask, labels = padded([rows[row].choices[0] for _, row in batch])
            # not the model's own loss, which transformers takes in float32
            logits = twin(input_ids=ids, attention_mask=mask).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            if (i + 1) % accumulate == 0 or i + 1 == PER_EPOCH:
                for p in trained:  # not (loss / accumulate).backward(): transformers' RMSNorm rounds to float32
                    p.grad = None if p.grad is None else p.grad / accumulate
                if clip:
                    torch.nn.utils.clip_grad_norm_(trained, clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return twin


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, None), (1, 0.5), (3, 0.2)])
def test_training_is_pefts(accumulate: int, clip: float | None) -> None:
    method = make_method("adapter.target_modules=[q_proj,v_proj,down_proj]", base=language_model(dtype=torch.float64))
    twin = by_hand(peft_twin(language_model(dtype=torch.float64).model, method.chain, 0), accumulate, clip)
    fit(method, f"trainer.accumulate_grad_batches={accumulate}", f"trainer.gradient_clip_val={clip or 'null'}")
    assert_equal(method.chain, twin)


@pytest.mark.parametrize("arch", ["qwen2", "opt", "bloom", "gpt2"])
def test_training_is_pefts_on_other_architectures(arch: str) -> None:
    """With the layers that have a bias, GPT-2's `Conv1D`, and a head that shares the embedding's weight or doesn't."""
    fields = [f"adapter.target_modules=[{','.join(TARGETS[arch])}]"]
    if arch in WITH_BIAS:
        fields += ["adapter.lora_bias=true", "adapter.init_lora_weights=true"]
    method = make_method(*fields, base=language_model(arch, dtype=torch.float64))
    twin = by_hand(peft_twin(language_model(arch, dtype=torch.float64).model, method.chain, 0))
    fit(method)
    assert_equal(method.chain, twin)


def assert_equal(chain: Chain, twin: PeftModel) -> None:
    """The chain's live link is what PEFT's adapter is, and more than nothing."""
    theirs = {name: p.detach() for name, p in twin.named_parameters() if p.requires_grad}
    names = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight", "lora_bias": "lora_B.default.bias"}
    ours = {
        f"base_model.model.{layer}.{name}": tensor[0]
        for layer, bank in chain.banks.items()
        for key, name in names.items()
        if (tensor := getattr(bank, key)) is not None
    }
    assert ours.keys() == theirs.keys()
    for name, peft in theirs.items():
        assert (ours[name] - peft).norm() <= 1e-8 * peft.norm()
        assert peft.norm() > 0


def test_the_base_stays_as_it_was() -> None:
    method, untouched = make_method(), language_model().model.state_dict()
    fit(method)
    for name, tensor in method.model.state_dict().items():
        if "lora_" not in name and "ledger" not in name and not name.endswith("scaling"):
            assert torch.equal(tensor, untouched[name.replace(".base_layer", "")])


@pytest.mark.parametrize("where", ["adapter", "model"])
def test_the_seed_is_all_that_a_run_depends_on(where: str) -> None:
    """With dropout, whatever the global random state was; OPT's own is a function, not a module."""
    overrides = ["adapter.lora_dropout=0.2"] if where == "adapter" else []
    ends = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        base = language_model() if where == "adapter" else language_model("opt", dropout=0.2)
        torch.manual_seed(state)
        method = make_method(f"seed={seed}", *overrides, base=base)
        fit(method)
        ends.append(method.state_dict())
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_dropout_draws_anew_for_each_batch() -> None:
    """With the same batch again and again, and a learning rate of almost nothing, the loss changes only by dropout."""
    log = Log()
    fit(make_method("adapter.lora_dropout=0.5", "optim.lr=0.3"), logger=log, train_size=4, val_size=1)
    dropped = log.of("train/loss")
    log = Log()
    fit(make_method("optim.lr=0.3"), logger=log, train_size=4, val_size=1)
    assert dropped[0] == log.of("train/loss")[0]  # B is zero
    assert dropped[1:] != log.of("train/loss")[1:]


def test_a_pretrained_model_is_trained_in_training_mode() -> None:
    """`from_pretrained` gives it in evaluation mode, and Lightning would leave it there: no dropout at all."""
    ends = []
    for loaded in (True, False):
        base = language_model()
        base.model.train(not loaded)
        method = make_method("adapter.lora_dropout=0.5", base=base)
        fit(method)
        ends.append(method.state_dict())
    assert same(*ends)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_rates_fall_linearly_by_optimizer_step(accumulate: int) -> None:
    """`train/lr` is logged at each optimizer step: Lightning logs once the step is done."""
    log, total = Log(), EPOCHS * -(-PER_EPOCH // accumulate)
    fit(make_method(), f"trainer.accumulate_grad_batches={accumulate}", logger=log)
    assert log.of("train/lr") == pytest.approx([5e-3 * (1 - step / total) for step in range(total)])


def one_task(task: int, **settings: Any) -> TaskDataModule:
    """The batches of several tasks, with nothing left in them but the rows of one."""
    data = make_data(language_model(), **settings)
    original = data.train_dataloader

    def train_dataloader() -> TrainLoader:
        loader = original()
        loader.collate_fn = lambda rows: collate_train([(0, row) for _, row in rows if row.task == task], Serving(), 0)
        return loader

    data.train_dataloader = train_dataloader  # type: ignore[method-assign]
    return data


@pytest.mark.parametrize(("optim", "clip"), [("adamw", "null"), ("adamw", "0.3"), ("sgd", "null")])
def test_two_adapters_train_each_as_if_alone(optim: str, clip: str) -> None:
    """Each against a run of its own, on its rows of the same batches; each batch has rows of both."""
    fields = [f"optim={optim}", "optim.lr=1e-2"]
    data: dict[str, Any] = {"tasks": ["one", "two"], "batch_size": 18}
    trainer = ("trainer.max_epochs=7", f"trainer.gradient_clip_val={clip}")
    both = make_method(*fields, base=language_model(dtype=torch.float64), names=["one", "two"])
    fit(both, *trainer, **data)
    for expert in (0, 1):
        alone = make_method(*fields, f"seed={expert}", base=language_model(dtype=torch.float64))
        fit(alone, *trainer, module=one_task(expert, **data))
        for layer, bank in both.chain.banks.items():
            for name in ("lora_A", "lora_B"):
                ours, theirs = getattr(bank, name)[expert], getattr(alone.chain.banks[layer], name)[0]
                assert (ours - theirs).norm() <= 1e-8 * theirs.norm()


def test_only_a_mixtures_adapters_are_computed_jointly() -> None:
    """What isn't finite in one of them reaches the others so."""
    batch = pack([Tokens([1, 2, 3], [IGNORED, 2, 3]), Tokens([4, 5], [IGNORED, 5])], [0, 1])
    names = "method.names=[one,two]"
    one, two = make_method(f"+{names}"), side_by_side(["seed=0"], ["seed=1"])
    for method, joint in ((one, False), (two, False), (make_method("method=moa", names), True)):
        method.route(batch)
        assert isinstance(method.chain.route, HardRoute)
        assert method.chain.route.joint is joint


def test_each_adapter_has_its_own_rate() -> None:
    """At 1e-30 an adapter stands still in float32 while its neighbour learns."""
    method = make_method("optim.lr=[1e-30,1e-2]", names=["one", "two"])
    start = method.state_dict()
    start = {key: value.clone() for key, value in start.items()}
    fit(method, tasks=["one", "two"])
    for layer, bank in method.chain.banks.items():
        assert torch.equal(bank.lora_A[0], start[f"{layer}.lora_A"][0])
        assert not torch.equal(bank.lora_A[1], start[f"{layer}.lora_A"][1])


def test_rates_must_be_one_or_one_each() -> None:
    with pytest.raises(InstantiationException, match=r"optim.lr gives 3 learning rates for 2 adapters"):
        make_method("optim.lr=[1e-3,1e-3,1e-3]", names=["one", "two"])


def test_metrics_of_several_adapters_bear_their_names() -> None:
    log = Log()
    fit(make_method(names=["one", "two"]), "trainer.gradient_clip_val=1.0", logger=log, tasks=["one", "two"])
    logged = {key for _, row in log.rows for key in row}
    assert {"train/loss/one", "train/loss/two", "train/gradient_norm/two", "val/accuracy", "val/two/loss"} <= logged
    overall, one, two = (log.of(key)[0] for key in ("val/loss", "val/one/loss", "val/two/loss"))
    assert overall == pytest.approx((one + two) / 2)


def test_each_adapter_answers_its_own_task() -> None:
    """What the second adapter learns changes the second task's answers alone."""
    method = make_method(names=["one", "two"])
    trainer = fit(method, tasks=["one", "two"])
    trainer.validate(method, make_data(method.base, tasks=["one", "two"]), verbose=False)
    before = {p.source: p.loss for p in method.predictions["val"][0]}
    for bank in method.chain.banks.values():
        bank.lora_B.data[1] += 1.0
    trainer.validate(method, make_data(method.base, tasks=["one", "two"]), verbose=False)
    changed = {p.source for p in method.predictions["val"][0] if p.loss != before[p.source]}
    assert changed == {p.source for p in method.predictions["val"][0] if p.task == "two"}


def test_divergence_is_one_clear_error() -> None:
    with pytest.raises(LorachainsError, match=r"training has diverged; lower optim.lr \(1000000.0\)"):
        fit(make_method(*DIVERGING))


def test_a_run_without_end_is_refused() -> None:
    with pytest.raises(LorachainsError, match="both unlimited"):
        fit(make_method(), "trainer.max_epochs=-1")


@pytest.mark.parametrize("limits", [("trainer.max_steps=10",), ("trainer.max_steps=10", "trainer.max_epochs=-1")])
def test_max_steps_ends_a_run_and_its_schedule(limits: tuple[str, ...]) -> None:
    log, states = Log(), States()
    trainer = fit(make_method(), *limits, logger=log, callbacks=[states])
    assert trainer.global_step == max(states.after) == 10
    assert log.of("train/lr") == pytest.approx([5e-3 * (1 - step / 10) for step in range(10)])


def test_the_log_has_no_python_warnings_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lorachains"):
        fit(make_method())
    assert [r for r in caplog.records if r.name.startswith("lorachains")] == []


@pytest.mark.parametrize("arch", ["opt", "bloom", "gpt2", "qwen2"])
def test_other_architectures_learn(arch: str) -> None:
    """From PEFT's default targets: the loss of the training rows falls."""
    log = Log()
    fit(make_method("optim.lr=2e-2", base=language_model(arch)), logger=log)
    losses = log.of("train/loss")
    assert sum(losses[-PER_EPOCH:]) < 0.99 * sum(losses[:PER_EPOCH])


def test_the_trainer_holds_no_parameter_of_the_base_in_its_checkpoints(tmp_path: Any) -> None:
    method = make_method()
    trainer: L.Trainer = fit(method)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(".lora_" in k or ".ledger_" in k or k.endswith(".scaling") or k.startswith("chain.") for k in saved)
