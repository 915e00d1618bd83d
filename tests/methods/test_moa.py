"""MoA's two stages: what they train, what they keep, and what they tell."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch.nn import functional as F

from lorachains.base_reader import BaseReader
from lorachains.batch import TokenBatch
from lorachains.errors import LorachainsError
from lorachains.jobs import stack
from lorachains.methods import Lora, Moa
from lorachains.mixture import READS
from lorachains.run_folder import RunFolder
from tests.adapters import randomise
from tests.methods.test_resume import stopped_and_resumed
from tests.runs import Log, fit, language_model, make_data, make_method, run, same, settings

TASKS = ["one", "two", "free"]
NAMES = "method.names=[one,two,free]"
DATA: dict[str, Any] = {"tasks": TASKS, "train_size": 9, "val_size": 3, "test_size": 3}
"""27 rows: 7 batches an epoch."""


def moa(*overrides: str, dtype: torch.dtype = torch.float64, arch: str = "llama", **fields: Any) -> Moa:
    base = fields.pop("base", None) or language_model(arch, dtype)
    method = make_method("method=moa", NAMES, *overrides, base=base, **fields)
    assert isinstance(method, Moa)
    return method


def batch_of(method: Lora) -> TokenBatch:
    data = make_data(method.base, **DATA)
    data.setup()
    data.serve(method.serving, by_length=False)
    return next(iter(data.train_dataloader()))


def mixing(*overrides: str, **kwargs: Any) -> Moa:
    """In stage 2, with random experts and routers."""
    method = moa(*overrides, **kwargs)
    method.continuing = True
    randomise(method.chain)
    rows = method.routers.rows
    rows.data = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows.dtype)
    return method


def gradients(method: Moa) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    batch = batch_of(method)
    method.model.eval()
    method.route(batch)
    terms = method.losses(batch)
    return terms, method.differentiate(torch.stack(list(terms.values())).sum())


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_without_eta_stage_2_is_the_experts_alone(arch: str) -> None:
    """Losses, adapters and all: bit for bit what LoRA with an adapter a task makes of the same rows."""
    schedule = ["optim.schedule=constant", "trainer.max_epochs=2"]
    log, other = Log(), Log()
    ours = moa("method.eta=0", "method.stage1_epochs=0", schedule[0], arch=arch)
    fit(ours, schedule[1], logger=log, **DATA)
    theirs = make_method(schedule[0], base=language_model(arch, torch.float64), names=TASKS)
    fit(theirs, schedule[1], logger=other, **DATA)
    assert same(ours.chain.state_dict(), theirs.chain.state_dict())
    for name in TASKS:
        assert log.of(f"train/loss/{name}") == other.of(f"train/loss/{name}")
    assert (ours.routers.rows == 0).all()
    assert [best.step for best in ours.best.best] == [best.step for best in theirs.best.best], "each its own"
    assert log.of("val/loss") == other.of("val/loss")


@pytest.mark.parametrize(("eta", "there"), [(0.0, False), (0.5, True)])
def test_routers_learn_by_label_if_and_only_if_eta_is_positive(eta: float, there: bool) -> None:
    terms, (_, routers) = gradients(mixing(f"method.eta={eta}"))
    assert bool((routers != 0).any()) == there
    assert ("router" in terms) == there


@pytest.mark.parametrize("reads", READS)
def test_eta_scales_the_routers_term_and_leaves_the_other(reads: str) -> None:
    one, (links, routers) = gradients(mixing("method.eta=1", f"method.reads={reads}"))
    two, (links2, routers2) = gradients(mixing("method.eta=2", f"method.reads={reads}"))
    torch.testing.assert_close(two["router"], 2 * one["router"])
    torch.testing.assert_close(routers2, 2 * routers)
    assert torch.equal(two["lm"], one["lm"])
    reached = bool((links2 - links).abs().max() > 0)
    assert reached == (reads == "experts"), "the cross-entropy reaches the experts of the block below, if they read"


class Etas(L.Callback):
    """Takes down the weight by which each optimizer step was made."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Moa)
        self.seen.append(float(pl_module._eta))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_eta_falls_over_stage_2_if_it_is_to(schedule: str) -> None:
    etas = Etas()
    method = moa("method.eta=2", "method.stage1_epochs=1", f"method.eta_schedule={schedule}")
    fit(method, "trainer.max_epochs=2", callbacks=[etas], **DATA)
    assert etas.seen[7:] == pytest.approx([2 * (1 - step / 7 if schedule == "linear" else 1) for step in range(7)])


@pytest.mark.parametrize("route", ["straight_through", "soft"])
def test_by_their_decisions_routers_learn_from_answers(route: str) -> None:
    _, (_, routers) = gradients(mixing("method.eta=0", f"method.route={route}"))
    assert (routers != 0).any()


@pytest.mark.parametrize("route", ["label", "soft"])
def test_the_gradient_is_that_of_autograd_over_all(route: str) -> None:
    method = mixing("method.eta=0.7", f"method.route={route}")
    terms, (links, routers) = gradients(method)
    parameters = [*method.chain.parameters(), method.routers.rows]
    batch = batch_of(method)
    method.route(batch)
    torch.stack(list(method.losses(batch).values())).sum().backward()
    assert terms["lm"].shape == (3,)
    expected = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    torch.testing.assert_close(links, torch.cat([g.flatten(1) for g in expected[:-1]], 1))
    torch.testing.assert_close(routers, expected[-1])


@pytest.mark.parametrize(
    "more", [[], ["method.route=soft"], ["method.share_router=false", "adapter.target_modules=all-linear"]]
)
@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_what_the_base_has_read_once_is_not_read_again(
    arch: str, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the one that reads in each step. The first batches may have been made before stage 2 began."""
    logs, read = [], [0, 0]
    reading = BaseReader.read

    def counting(*args: Any) -> Any:
        read[-1] += 1
        return reading(*args)

    monkeypatch.setattr(BaseReader, "read", counting)
    for known in (True, False):
        if not known:
            read.append(0)
            monkeypatch.setattr(Moa, "_numbers", lambda self, rows: None)
        alone = ["method.stage1_epochs=1", "method.router_lr=1e-2", "method.router_batch_size=null"]
        method, log = moa(*alone, *more, arch=arch), Log()
        fit(method, "trainer.max_epochs=4", logger=log, **DATA)
        logs.append(log)
    assert read[-1] - read[-2] > 15, "of 21 steps"
    for key in ("train/router/two", "train/lm/free", "val/router/voted"):
        assert len(logs[0].of(key)) > 2
        assert logs[0].of(key) == pytest.approx(logs[1].of(key), rel=1e-9)


def test_one_kernel_makes_the_step_that_many_do() -> None:
    """As on a GPU: it takes all tensors as they lie in memory, the routers' gradients too."""
    found = []
    for fused in ("true", "false"):
        found.append(moa("method.stage1_epochs=1", f"+optim.optimizer.fused={fused}"))
        fit(found[-1], "trainer.max_epochs=2", **DATA)
    torch.testing.assert_close(found[0].routers.rows, found[1].routers.rows, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0].chain.links, found[1].chain.links, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_routers_learn_from_other_texts_too(arch: str) -> None:
    """Their loss is the mean over the batch's own and those drawn, which are others in each batch."""
    drawn: list[list[int]] = []

    class Drawn(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, Moa)
            assert pl_module._others is not None
            drawn.append(pl_module._others.numbers.tolist())

    method = moa("method.stage1_epochs=0", "method.router_lr=1e-2", "method.router_batch_size=11", arch=arch)
    fit(method, "trainer.max_epochs=1", callbacks=[Drawn()], **DATA)
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn) == 7
    rows, known = method.data.runs[0].rows("train"), method.mixture.by_base.known
    assert known is not None
    assert {len(numbers) for numbers in drawn} == {11 - method.data.runs[0].batch_size}
    batch = next(iter(method.data.train_dataloader()))
    assert batch.numbers is not None
    texts = [*batch.numbers[list(batch.texts)].tolist(), *drawn[-1]]
    method.route(batch)
    parts, expected = method.losses(batch)["router"], torch.zeros(3, dtype=torch.float64)
    for number in texts:
        domain = rows[number].task
        logits = torch.stack([weight @ known[number, block] for block, weight in enumerate(method.routers.weight)])
        expected[domain] += F.cross_entropy(logits, torch.full((len(logits),), domain)) / len(texts)
    torch.testing.assert_close(parts.double(), expected)


def test_what_is_read_once_is_no_steps_cost(tmp_path: Path) -> None:
    """The products of stage 2 are those of its answers, whether training begins in it or goes on there."""
    flops = []
    for i, eta in enumerate((1, 0)):
        run(tmp_path / str(i), "method=moa", NAMES, "method.stage1_epochs=0", f"method.eta={eta}",
            "trainer.max_epochs=1", data=DATA)  # fmt: skip
        metrics = json.loads((tmp_path / str(i) / "metrics.json").read_text())
        flops.append({key: value for key, value in metrics.items() if key.endswith("/flops")})
    assert flops[0] == flops[1]
    assert len(flops[0]) == 4


def test_a_config_from_before_there_was_a_choice_has_experts_that_read() -> None:
    cfg = settings("method=moa", NAMES)
    del cfg.method.reads
    method = stack([instantiate(cfg.method, _partial_=True)], language_model("llama", torch.float32))
    assert isinstance(method, Moa)
    assert method.mixture.reads == "experts"


def test_routers_have_a_learning_rate_and_a_norm_of_their_own() -> None:
    method = moa("method.router_lr=1e-30", "method.stage1_epochs=0")
    fit(method, "trainer.max_epochs=1", "trainer.gradient_clip_val=1.0", **DATA)
    assert method.routers.rows.abs().max() < 1e-25
    before = moa().chain.state_dict()
    assert not same(method.chain.state_dict(), before)
    other = moa("optim.lr=1e-30", "method.router_lr=1e-2", "method.stage1_epochs=0")
    fit(other, "trainer.max_epochs=1", **DATA)
    assert other.routers.rows.abs().max() > 1e-2
    after = other.chain.state_dict()
    assert all(torch.allclose(after[key], before[key], rtol=0, atol=1e-20) for key in before)


def test_stage_1_is_lora_and_stage_2_begins_with_its_best(tmp_path: Path) -> None:
    """Each expert's own best epoch of stage 1, and a schedule that starts again."""
    log = Log()
    method = moa("method.stage1_epochs=2", "method.router_lr=1e-3")
    fit(method, "trainer.max_epochs=3", logger=log, **DATA)
    single, alone = make_method(base=language_model(dtype=torch.float64), names=TASKS), Log()
    fit(single, "trainer.max_epochs=2", logger=alone, **DATA)
    for name in TASKS:
        losses, rates = alone.of(f"train/loss/{name}"), alone.of(f"train/lr/{name}")
        assert log.of(f"train/loss/{name}")[: len(losses)] == losses
        assert log.of(f"train/lr/{name}")[: len(rates)] == rates
        second = log.of(f"train/lr/{name}")[len(rates) :]
        assert second == pytest.approx([5e-3 * (1 - step / len(second)) for step in range(len(second))])
        assert len(log.of(f"train/router/{name}")) == len(second) > 0
    assert {best.step for best in method.best.best} == {21}


OVERRIDES = ["method=moa", NAMES, "method.stage1_epochs=1", "method.router_lr=1e-2", "trainer.max_epochs=3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(folder, *OVERRIDES, data=DATA)
    return folder


@pytest.mark.parametrize(
    "kills",
    [[("at an epoch's end", 7), ("before a batch", 7)], [("after a batch", 5), ("after a batch", 10)],
     [("after validation", 14), ("in the test", 21)]],
)  # fmt: skip
def test_stopped_at_any_moment_it_ends_the_same(kills: list[tuple[str, int]], finished: Path, tmp_path: Path) -> None:
    folder = stopped_and_resumed(tmp_path, *OVERRIDES, kills=kills, data=DATA)
    for file in ["router.safetensors", "mixture.json", *(f"{name}/adapter_model.safetensors" for name in TASKS)]:
        assert (folder / "adapters" / file).read_bytes() == (finished / "adapters" / file).read_bytes(), file
    ours, theirs = (RunFolder(f).read_metrics() for f in (folder, finished))
    assert {k: v for k, v in ours.items() if k.startswith("test")} == {
        k: v for k, v in theirs.items() if k.startswith("test")
    }


def test_what_a_run_tells(finished: Path) -> None:
    metrics = RunFolder(finished).read_metrics()
    assert 0 <= metrics["test/router/voted"] <= 1
    heat = json.loads((finished / "heat_map.json").read_text())
    for picture in ("heat_map.png", "router_blocks.png", "confusion.png"):
        assert (finished / picture).stat().st_size > 1000
    for name in TASKS:
        own = torch.tensor(heat[name][name], dtype=torch.float64).exp()
        assert metrics[f"test/oracle/{name}/perplexity"] == pytest.approx(float(own))
        routed = torch.tensor(metrics[f"test/{name}/loss"], dtype=torch.float64).exp()
        assert metrics[f"test/routed/{name}/perplexity"] == pytest.approx(float(routed))
    each = [metrics[f"test/oracle/{name}/perplexity"] for name in TASKS]
    assert metrics["test/oracle/perplexity"] == pytest.approx(sum(each) / 3)
    product = each[0] * each[1] * each[2]
    assert metrics["test/oracle/perplexity_geometric"] == pytest.approx(product ** (1 / 3))
    assert load_file(finished / "adapters" / "router.safetensors")["weight"].shape == (2, 3, 32)


def test_blocks_that_do_not_vote(tmp_path: Path) -> None:
    method = run(tmp_path, "method=moa", NAMES, "method.voters=[1]", "trainer.max_epochs=2", data=DATA)
    metrics = RunFolder(tmp_path).read_metrics()
    assert metrics["test/router/accuracy"] == metrics["test/router/block/1"]
    assert json.loads((tmp_path / "adapters" / "mixture.json").read_text())["voters"] == [1]
    assert isinstance(method, Moa)


def test_the_best_epoch_keeps_routers_and_experts_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch of stage 2, though single experts were better later."""
    summaries = Moa.adapter_summaries

    def rigged(self: Moa, split: str) -> list[dict[str, float]]:
        epoch = self.trainer.global_step // 7
        scores = {1: [1.0, 0.9, 0.5], 2: [0.0, 1.0, 0.9]}[epoch]
        return [{"accuracy": s, "loss": found["loss"]} for s, found in zip(scores, summaries(self, split), strict=True)]

    monkeypatch.setattr(Moa, "adapter_summaries", rigged)
    once = moa("method.stage1_epochs=0", "method.router_lr=1e-2", "optim.schedule=constant")
    method = moa("method.stage1_epochs=0", "method.router_lr=1e-2", "optim.schedule=constant")
    fit(once, "trainer.max_epochs=1", **DATA)
    fit(method, "trainer.max_epochs=2", **DATA)
    assert not torch.equal(method.routers.rows, once.routers.rows)
    method.best.restore(method)
    assert {best.step for best in method.best.best} == {7}
    assert same(method.state_dict(), once.state_dict())


@pytest.mark.parametrize("decision", ["argmax", "soft"])
def test_other_decisions_and_routes_run(decision: str, tmp_path: Path) -> None:
    more = ["method.top_k=2", "method.route=soft"] if decision == "soft" else ["method.route=straight_through"]
    run(tmp_path, "method=moa", NAMES, f"method.decision={decision}", *more, "trainer.max_epochs=2", data=DATA)
    assert "test/routed/perplexity" in RunFolder(tmp_path).read_metrics()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "opt", "bloom"])
def test_architectures_train_two_steps_and_answer(arch: str, tmp_path: Path) -> None:
    targets = "query_key_value" if arch == "bloom" else "q_proj"
    base = language_model(arch)
    short = ["trainer.max_steps=2", "trainer.max_epochs=-1", "method.stage1_epochs=0", "method.router_lr=1e-2"]
    method = run(tmp_path, "method=moa", NAMES, *short, f"adapter.target_modules=[{targets}]", base=base, data=DATA)
    assert isinstance(method, Moa)
    assert (method.routers.rows != 0).any()
    answers = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [answer["task"] for answer in answers].count("free") == 3


def test_a_router_for_each_half_of_a_block(tmp_path: Path) -> None:
    more = ["method.share_router=false", "adapter.target_modules=all-linear", "method.stage1_epochs=0"]
    run(tmp_path, "method=moa", NAMES, *more, "trainer.max_epochs=1", data=DATA)
    assert load_file(tmp_path / "adapters" / "router.safetensors")["weight"].shape == (4, 3, 32)
    assert "test/router/block/3" in RunFolder(tmp_path).read_metrics()


def test_experts_of_a_finished_run_are_taken_over(finished: Path, tmp_path: Path) -> None:
    method = moa(f"method.experts={finished}", dtype=torch.float32)
    for expert, name in enumerate(TASKS):
        tensors = load_file(finished / "adapters" / name / "adapter_model.safetensors")
        for layer, bank in method.chain.banks.items():
            assert torch.equal(bank.lora_B[expert], tensors[f"base_model.model.{layer}.lora_B.weight"])
    fit(method, "trainer.max_epochs=1", **DATA)
    assert method.boundary == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.eta=-1"], "method.eta is -1"),
        (["method.eta=null"], "method.eta is None"),
        (["method.eta=much"], "method.eta is 'much'"),
        (["method.eta=inf"], "method.eta is inf"),
        (["method.eta=true"], "method.eta is True"),
        (["method.eta_schedule=cosine"], "method.eta_schedule is 'cosine'"),
        (["method.voters=[2]"], r"method.voters is \[2\]: give numbers from 0 to 1"),
        (["method.route=hard"], "method.route is 'hard'"),
        (["method.router_lr=0"], "method.router_lr is 0"),
        (["method.router_lr=inf"], "method.router_lr is inf"),
        (["method.router_lr=true"], "method.router_lr is True"),
        (["method.router_batch_size=0"], "method.router_batch_size is 0"),
        (["method.decision=best"], "decision is 'best'"),
        (["method.share_router=false"], "needs LoRAs in each block's attention and in its feed-forward"),
        (["method.stage1_epochs=-1"], "method.stage1_epochs is -1"),
        (["method.names=[one]"], "nothing to route with the experts"),
        (["+method.experts.one=a"], "give a folder for each of one, two, free, no other"),
        (["method.experts=nowhere"], "nowhere/one holds no adapter"),
        (["method.experts=[a]"], r"method.experts is \['a'\]: give a run's folder"),
        (["method.heat_map=no"], "method.heat_map is 'no'"),
        (["method.share_router=no"], "method.share_router is 'no'"),
    ],
)
def test_refusals(overrides: list[str], says: str) -> None:
    with pytest.raises(InstantiationException, match=says):
        moa(*overrides)


def test_no_step_is_left_for_stage_2() -> None:
    with pytest.raises(LorachainsError, match="leaves none of 7 optimizer steps for stage 2"):
        fit(moa("method.stage1_epochs=1"), "trainer.max_epochs=1", **DATA)
    with pytest.raises(LorachainsError, match=r"no optimizer step for stage 2: raise trainer\.max_epochs"):
        fit(moa(), "trainer.max_steps=0", **DATA)
    with pytest.raises(LorachainsError, match=r"trainer.max_epochs is 0: raise it, there are two stages"):
        fit(moa(), "trainer.max_epochs=0", **DATA)


def test_experts_and_tasks_have_the_same_names() -> None:
    with pytest.raises(LorachainsError, match=r"there is an adapter for each of .*: choose .* set method\.names=null"):
        fit(moa(), **DATA | {"tasks": ["two", "one", "free"]})
