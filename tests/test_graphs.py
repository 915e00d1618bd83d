"""Where passes can't be replayed, it says why. The replaying needs a GPU; for what it reads see `test_batch.py`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch.autograd.graph import get_gradient_edge

from lorachains.batch import TokenBatch
from lorachains.config import sweeps_dir
from lorachains.data.runs import RunsDataModule
from lorachains.filling import filled
from lorachains.graphs import Replayed, compile_layers, decoder_layers, why_not
from lorachains.jobs import stack
from lorachains.methods import Lora
from lorachains.models.checkpointing import checkpoint_layers
from lorachains.tracing import trace
from lorachains.trainer import HOST_THREADS
from tests.adapters import randomise
from tests.runs import PER_EPOCH, language_model, make_data, make_trainer, outcome, run, settings
from tests.tiny import ARCHITECTURES, tiny_model


def test_a_cpu_has_no_graphs() -> None:
    assert why_not(tiny_model("llama")) == "the model is not on a CUDA device"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_decoder_layers_are_found(arch: str) -> None:
    """What runs between embeddings and head, in order: their last output is what the head is made of."""
    model = tiny_model(arch).eval()
    seen: list[int] = []
    layers = decoder_layers(model)
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=i: seen.append(i))
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen == [0, 1]
    parameters = sum(p.numel() for p in layers.parameters())
    assert parameters > 0.3 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_layers_are_one_function_that_reads_nothing_of_the_host(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo makes tensors of a module's floats, for which Inductor builds C++ kernels: OPT took a minute more."""
    given: list[list[Any]] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any], options: object) -> Any:
        given.append(inputs)
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    model = tiny_model(arch).train()
    compile_layers(model)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    (inputs,) = given
    assert not [tensor for tensor in inputs if isinstance(tensor, torch.Tensor) and tensor.dim() == 0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_that_of_plain_passes(checkpointing: bool) -> None:
    """Also where layers run again in the backward pass."""
    torch.compiler.reset()
    model = tiny_model("opt", dropout=0.2).train()
    weight = decoder_layers(model)[0].get_parameter("fc1.weight")

    def passed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits
        (gradient,) = torch.autograd.grad(logits.square().sum(), weight)
        return logits.detach(), gradient

    plain = passed(0)
    if checkpointing:
        checkpoint_layers(model)
    compile_layers(model)
    torch.testing.assert_close(passed(0), plain, rtol=1e-4, atol=1e-5)
    assert (passed(1)[0] - plain[0]).abs().max() > 0.01


def test_after_a_change_each_size_is_passed_plainly_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has got another shape is compiled in the plain pass: during a recording that fails."""
    made: list[str] = []

    class Noting(Replayed):
        def _aside(self, work: Any, batch: TokenBatch) -> Any:
            return work(batch)

        def _record(self, batch: TokenBatch) -> Any:
            made.append("recorded")
            return SimpleNamespace(
                graph=SimpleNamespace(replay=lambda: made.append("replayed")), batch=batch, outputs=()
            )

    def plain(_: TokenBatch) -> tuple[torch.Tensor, ...]:
        made.append("plain")
        return ()

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    data = RunsDataModule([make_data(language_model("llama", torch.float32))])
    data.setup()
    batch, layout = filled(next(iter(data.train_dataloader())), 64), [0]
    replayed = Noting(plain, torch.device("cpu"), lambda: layout[0])
    for layout[0] in (0, 1):
        for _ in range(3):
            replayed(batch)
    assert made == 2 * ["plain", "recorded", "replayed", "replayed"]


def test_what_was_compiled_for_another_rank_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guards of what was compiled may not notice that a parameter has another shape; a knot of the same rank needs
    nothing."""
    method = stack(
        [instantiate(settings("method=cola").method, _partial_=True)], language_model("llama", torch.float32)
    )
    assert isinstance(method, Lora)
    method.chain.flatten()
    method.chain.reserve(24)
    forgotten: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(method.chain.rank))
    monkeypatch.setattr("lorachains.methods.passes.why_not", lambda _: None)
    monkeypatch.setattr("lorachains.methods.passes.Passes._training_precision", lambda _: nullcontext())
    monkeypatch.setattr("lorachains.methods.passes.Replayed", lambda run, device, layout: layout)
    monkeypatch.setattr(type(method), "data", SimpleNamespace(runs=[SimpleNamespace(longest=lambda: 8)]))
    method.passes.prepare("true")
    layout: Any = method.passes._train
    for step, rank in enumerate([8, 2, 2, 4]):
        method.chain.tie(step)
        method.chain.extend(rank)
        assert layout() == method.layout
    assert forgotten == [2, 4]


def test_a_gpus_host_keeps_its_cores_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 cores, 51 were busy in one process: threads that wait in a loop for the next small operation."""
    threads = [64]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    make_trainer()
    assert threads == [64]
    monkeypatch.setattr("lorachains.trainer.on_gpu", lambda _: True)
    make_trainer()
    assert threads == [64, HOST_THREADS]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_may_be_replayed_where_evaluation_is_more_exact(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all weights are trained on a GPU: what is evaluated there isn't filled up for a graph, nor compiled. Each pass
    gives its gradient in the same tensors; here they are made plainly, in the precision of the weights."""
    passes, precise, made = "lorachains.methods.passes.", list[bool](), list[str]()
    overrides = ["method=full", f"trainer.accumulate_grad_batches={accumulate}", "trainer.max_epochs=2"]

    @contextmanager
    def mixed() -> Iterator[None]:
        precise.append(False)
        yield
        precise.pop()

    def replayed(run: Any, device: torch.device, layout: Any) -> Any:
        def pass_(batch: TokenBatch) -> Any:
            made.append("rehearsed" if precise else "replayed")
            return run(batch)

        return pass_

    monkeypatch.setattr(passes + "Passes._training_precision", lambda _: mixed())
    monkeypatch.setattr(passes + "why_not", lambda _: None if precise else "attention in one kernel needs bfloat16")
    monkeypatch.setattr(passes + "Replayed", replayed)
    monkeypatch.setattr(passes + "compile_layers", lambda model, beside, back=False: None)
    monkeypatch.setattr(TokenBatch, "pin_memory", lambda batch: batch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    run(tmp_path / "replayed", *overrides, "trainer.compile=true")
    run(tmp_path / "plain", *overrides, "trainer.compile=false")
    assert made == ["rehearsed"] * 2 + ["replayed"] * 2 * PER_EPOCH
    (_, ours, *_), (_, plain, *_) = outcome(tmp_path / "replayed"), outcome(tmp_path / "plain")
    assert ours == {key: pytest.approx(value, rel=1e-4) for key, value in plain.items()}


@pytest.mark.parametrize(
    "method", ["lora", "full", "single_lora", "moa", "moa soft", "moa straight_through", "moe_lora"]
)
def test_nothing_holds_the_pass_before_the_recordings(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd's leaves remember the stream of the first pass that is held by anything, and one of another stream can't
    be recorded."""
    names = ["one", "two", "free"]
    name, *way = method.split()
    overrides = [f"method={name}", *(f"method.route={of}" for of in way), "trainer.max_epochs=1"]
    overrides += [] if name in ("lora", "full") else [f"method.names=[{','.join(names)}]"]
    overrides += ["method.stage1_epochs=0"] if name == "moa" else []
    checked: list[int] = []

    def leaves(model: Any) -> list[Any]:
        return [get_gradient_edge(p).node for p in model.parameters() if p.requires_grad]

    def marking(model: Any, batch: TokenBatch, loss: Any) -> Any:
        def marked() -> torch.Tensor:
            value = loss()
            for leaf in leaves(model):
                leaf.metadata["held"] = True
            assert all("held" in leaf.metadata for leaf in leaves(model))  # while `value` is
            return value

        return trace(model, batch, marked)

    def check(passes: Any) -> None:
        checked.extend("held" in leaf.metadata for leaf in leaves(passes.method.model))

    monkeypatch.setattr("lorachains.callbacks.flops.trace", marking)
    monkeypatch.setattr("lorachains.methods.passes.Passes.rehearse", check)
    data: dict[str, Any] = {"train_size": 9, "val_size": 3, "test_size": 3}
    run(tmp_path, *overrides, data=data if name in ("lora", "full") else data | {"tasks": names})
    assert checked
    assert not any(checked)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("runs", [1, 3])
def test_replayed_passes_are_the_plain_ones_also_after_a_knot(runs: int) -> None:
    """The knot's link is in what is replayed, though nothing was recorded anew."""
    base = language_model("llama", torch.bfloat16)
    parts = [instantiate(settings("method=cola", f"seed={seed}").method, _partial_=True) for seed in range(runs)]
    method = stack(parts, base)
    assert isinstance(method, Lora)
    torch.nn.Module.to(method.model, "cuda").train()
    method.chain.flatten()
    method.chain.reserve(8)
    randomise(method.chain)
    layout = method.chain.layout
    data = RunsDataModule([make_data(base, order_seed=seed) for seed in range(runs)])
    data.setup()
    batch = filled(next(iter(data.train_dataloader())), 64)
    replayed = Replayed(method.passes._forward_backward, method.model.device, lambda: method.chain.layout)
    for knots in (0, 1):
        if knots:
            method.chain.tie(1)
            method.chain.extend()
            randomise(method.chain, seed=1)
        *_, plain = method.passes._forward_backward(batch.to("cuda"))
        for _ in range(3):  # plain, recorded, replayed
            *_, ours = replayed(batch)
            assert (ours - plain).norm() <= 2e-2 * plain.norm()
        assert len(replayed._recorded) == 1
        assert method.chain.layout == layout


RUNS = {
    "links that fall in rank": ["method=cola", "data.tasks=[ADDING]", "knots=at_steps", "knots.steps=[9,16]",
                                "knots.ranks=[8,2,4]"],
    "all weights": ["method=full", "model.dtype=float32"],
    "all weights, two batches a step": ["method=full", "model.dtype=float32", "trainer.accumulate_grad_batches=2"],
    "experts": ["method=single_lora"],
    "mixture": ["method=moa"],
    "mixture with two routers a block": ["method=moa", "method.share_router=false",
                                         "adapter.target_modules=all-linear"],
    "mixture whose blocks decide": ["method=moa", "method.decision=argmax"],
    "mixture by the token": ["method=moe_lora"],
    "mixture by the token, balanced": ["method=moe_lora", "method.top_k=2", "method.balance=0.01"],
    "chain": ["method=chain_of_lora", "method.selection=generate"],
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_is_replayed_is_the_plain_one(run: str, tmp_path: Path) -> None:
    """With answers generated in between, and what changes in a run compiled and recorded anew.

    In processes of their own: here shapes are checked at each call, which can't be compiled.
    """
    rows = sweeps_dir() / "smoke" / "rows.jsonl"
    given = [
        "model=tiny", "model.dtype=bfloat16", *RUNS[run], "data=instructions", f"data.path='{rows}'",
        "data.batch_size=4", "data.generate=true", "data.max_new_tokens=24", "method.select=last",
        "trainer.accelerator=gpu", "trainer.max_epochs=6",
    ]  # fmt: skip
    told = {}
    for mode in ("auto", "false"):
        folder = tmp_path / mode
        own = [*given, f"trainer.compile={mode}", f"hydra.run.dir='{folder}'"]
        made = subprocess.run([sys.executable, "-m", "lorachains.train", *own], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert (": batches of up to" in made.stdout + made.stderr) == (mode == "auto")
        told[mode] = json.loads((folder / "metrics.json").read_text())
    # What is routed may go another way where two experts are nearly as likely.
    which = "test/oracle/loss" if "method=moa" in RUNS[run] else "/loss"
    compared = [key for key in told["auto"] if key.endswith(which) and "routed" not in key]
    assert compared
    for key in compared:
        assert told["auto"][key] == pytest.approx(told["false"][key], rel=2e-2), key
    if run == "links that fall in rank":
        ranks = [json.loads(line)["rank"] for line in (folder / "knots.jsonl").read_text().splitlines()]
        assert ranks == [8, 2, 4]
