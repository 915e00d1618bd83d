"""Over a base in 4 or 8 bits adapters are trained as over any other, and the base stays as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorachains.bank import LoraBank
from lorachains.batch import pack
from lorachains.chain import Chain
from lorachains.config import sweeps_dir
from lorachains.errors import LorachainsError
from lorachains.full_model import merge_in_memory
from lorachains.loading import attach_adapter
from lorachains.merging import why_not_mergeable
from lorachains.models import LanguageModel, Wheels, byte_tokenizer, fingerprint, load, quantization
from lorachains.routing import Routing
from lorachains.scoring import answer_losses
from lorachains.transfer import export
from tests.adapters import config, randomise
from tests.batches import texts_of
from tests.methods.test_resume import Kill, Killed
from tests.models.gguf_files import tiny_llama, write_gguf
from tests.runs import make_method, outcome, run
from tests.tiny import ARCHITECTURES, tiny_model

KINDS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
TEXTS = texts_of((23, 3), (5, 4), (40, 1), (12, 11), (23, 6))


@pytest.fixture
def bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="needs lorachains[quantization]")


def saved(folder: Path, arch: str = "llama") -> str:
    """A model as `save_pretrained` writes it."""
    tiny_model(arch).save_pretrained(folder)
    return saved_tokenizer(folder)


def saved_tokenizer(folder: Path) -> str:
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def quantised(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module).__name__ in KINDS.values()}


def weights(model: PreTrainedModel) -> list[Tensor]:
    """Of the quantised layers, with their scales, and of all else in the base."""
    scales = [getattr(layer.weight, "quant_state", None) for layer in quantised(model).values()]
    base = [p for name, p in model.named_parameters() if "lora_" not in name]
    return [t.detach().clone() for t in (*base, *(scale.absmax for scale in scales if scale is not None))]


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_decoders_linear_layers_are_quantised_and_nothing_else(arch: str, kind: str, tmp_path: Path) -> None:
    name, ids = saved(tmp_path, arch), torch.tensor([[3, 4, 5, 6]])
    model, whole = load(name, dtype="float32", quantization=kind).model, load(name, dtype="float32").model
    layers = quantised(model)
    assert {type(layer).__name__ for layer in layers.values()} == {KINDS[kind]}
    kept = {n for n, p in model.named_parameters() if p.is_floating_point()}
    assert {n for n, _ in whole.named_parameters()} - kept == {f"{layer}.weight" for layer in layers}
    ours, theirs = model(ids).logits, whole(ids).logits
    assert 0 < (ours - theirs).norm() < (0.25 if kind == "nf4" else 0.02) * theirs.norm()


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_adds_its_links_to_the_layers_own_output(kind: str, tmp_path: Path) -> None:
    model = load(saved(tmp_path), dtype="float32", quantization=kind).model
    layer, x = model.model.layers[0].mlp.down_proj, torch.randn(2, 3, 64)
    bank = LoraBank(layer, 1, Routing())
    bank.extend(torch.randn(1, 4, 64), torch.tensor([2.0]))
    nn.init.normal_(bank.lora_B)
    delta = 2 * F.linear(F.linear(x, bank.lora_A[0]), bank.lora_B[0])
    assert torch.allclose(bank(x), layer(x) + delta, atol=1e-5)
    assert str(why_not_mergeable(bank)).startswith(f"a {KINDS[kind]} has no floating-point weight")


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [["method=lora"], ["method=cola", "knots.links=2"]], ids=["lora", "cola"])
def test_training_leaves_the_base_as_it_was_and_the_adapter_loads_back(
    method: list[str], kind: str, tmp_path: Path
) -> None:
    """Over validation and tests as well: on some CPUs bitsandbytes would lay the weights out anew."""
    name = saved(tmp_path / "base")
    base = load(name, dtype="float32", quantization=kind)
    before, mark = weights(base.model), fingerprint(base.model)
    trained = run(tmp_path / "run", *method, "optim.lr=0.05", "trainer.max_epochs=2", base=base, data={"train_size": 8})
    assert trained.trainer.global_step == 4
    assert trained.knots_tied == len(method) - 1
    assert fingerprint(base.model) == mark
    assert all(torch.equal(a, b) for a, b in zip(before, weights(base.model), strict=True))

    with torch.no_grad():
        losses = answer_losses(trained.model.eval(), pack(TEXTS))
        again = load(name, dtype="float32", quantization=kind)
        bare = answer_losses(again.model.eval(), pack(TEXTS))
        attach_adapter(again, tmp_path / "run" / "adapter")
        loaded = answer_losses(again.model.eval(), pack(TEXTS))
    assert losses.isfinite().all()
    assert torch.allclose(loaded, losses, atol=1e-4)
    assert (losses - bare).abs().max() > 1e-2


@pytest.mark.usefixtures("bitsandbytes")
def test_a_merge_is_refused(tmp_path: Path) -> None:
    base = load(saved(tmp_path), quantization="nf4")
    with pytest.raises(
        InstantiationException,
        match=r"a Linear4bit has no floating-point weight .*requantize=true .* at a loss.*: use knots\.mode=ledger",
    ):
        make_method("method=cola", "knots.mode=merge", base=base)


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_at_the_users_choice_quantises_anew_and_says_what_it_lost(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    """Against the weight multiplied out in float32, and put into a fresh model that bitsandbytes quantises itself."""
    name = saved(tmp_path / "base")
    chain = Chain(load(name, dtype=dtype, quantization=kind).model.eval(), config("llama"))
    chain.requantize = True
    before = weights(chain.model)
    places = [t.data_ptr() for bank in chain.banks.values() for t in quantization.stored(bank.base_layer)]
    randomise(chain)
    plain = tiny_model("llama")
    lost = update = 0.0
    exact = {}
    for layer, bank in chain.banks.items():
        delta = 2 * bank.lora_B[0].detach() @ bank.lora_A[0].detach()
        exact[layer] = quantization.dequantized(bank.base_layer) + delta
        plain.get_parameter(f"{layer}.weight").data.copy_(exact[layer])
        update += float(delta.square().sum())
    plain.save_pretrained(tmp_path / "plain")
    reported = chain.tie(1, "merge")
    chain.extend()
    again = load(saved_tokenizer(tmp_path / "plain"), dtype="float32", quantization=kind).model
    for layer, bank in chain.banks.items():
        ours = quantization.dequantized(bank.base_layer)
        assert torch.allclose(ours, quantization.dequantized(again.get_submodule(layer)), atol=1e-5)
        lost += float((ours - exact[layer]).square().sum())
        x = torch.randn(5, bank.in_features)
        y, expected = bank(x.to(chain.model.dtype)).float(), F.linear(x, ours)
        assert (y - expected).norm() < 0.02 * expected.norm()  # 8 bits: LLM.int8() rounds what comes in as well
    assert reported == pytest.approx((lost / update) ** 0.5, rel=1e-3)
    assert reported > (0.02 if kind == "nf4" else 0.002)
    assert places == [t.data_ptr() for bank in chain.banks.values() for t in quantization.stored(bank.base_layer)]
    chain.rewind(0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(chain.model), strict=True))


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_quantises_anew_is_resumed_exactly(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = saved(tmp_path / "base")

    def base() -> LanguageModel:
        return load(name, dtype="float32", quantization=kind)

    overrides = ["method=cola", "knots=at_steps", "knots.steps=[2,5]", "knots.mode=merge", "knots.requantize=true"]
    run(tmp_path / "whole", *overrides, base=base())
    assert "merging link 2 into quantised weights lost" in caplog.text
    with pytest.raises(Killed):
        run(tmp_path / "stopped", *overrides, base=base(), callbacks=[Kill("on_train_batch_start", 9)])
    run(tmp_path / "stopped", *overrides, base=base(), resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    attach_adapter(base(), tmp_path / "whole" / "adapter")  # it knows the base as it was before


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_merged_into_the_dequantised_model(kind: str, tmp_path: Path) -> None:
    x, name = torch.tensor([[3, 4, 5, 6]]), saved(tmp_path / "base")
    chain = Chain(load(name, dtype="float32", quantization=kind).model.eval(), config("llama"))
    randomise(chain)
    merge_in_memory(export(chain, name, ""), load(name, dtype="float32", quantization=kind), tmp_path / "full")
    full = load(str(tmp_path / "full"), dtype="float32").model
    assert not quantised(full)
    theirs = chain.model(x).logits
    assert (full(x).logits - theirs).norm() < (1e-4 if kind == "nf4" else 0.02) * theirs.norm()
    gpt2 = load(saved(tmp_path / "gpt2", "gpt2"), dtype="float32", quantization=kind)
    with pytest.raises(LorachainsError, match=r"its layers are Conv1D, .* set model\.quantization=null"):
        merge_in_memory(export(Chain(tiny_model("gpt2"), config("gpt2")), name, ""), gpt2, tmp_path / "no")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_over_a_quantised_base_on_a_gpu(kind: str, tmp_path: Path) -> None:
    """In a process of its own; as it is replayed, and plainly. A knot moves no logit."""
    name, rows = saved(tmp_path / "base"), sweeps_dir() / "smoke" / "rows.jsonl"
    given = [
        "method=cola", "knots.links=2", "optim.lr=0.01", "trainer.accelerator=gpu", "trainer.max_epochs=4",
        "model=hf", f"model.name='{name}'", f"model.quantization={kind}", "method.select=last",
        "data=instructions", f"data.path='{rows}'", "data.tasks=[ADDING]", "data.batch_size=4",
    ]  # fmt: skip
    losses = []
    for mode in ("auto", "false"):
        folder = tmp_path / mode
        own = [*given, f"trainer.compile={mode}", f"hydra.run.dir='{folder}'"]
        made = subprocess.run([sys.executable, "-m", "lorachains.train", *own], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        knot, _ = [json.loads(line) for line in (folder / "knots.jsonl").read_text().splitlines()]
        assert knot["drift"] < 1e-3
        losses.append(json.loads((folder / "metrics.json").read_text())["test/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_only_quantised_weights_are_quantised_anew() -> None:
    with pytest.raises(InstantiationException, match=r"knots\.requantize is true, but no weight is quantised"):
        make_method("method=cola", "knots.mode=merge", "knots.requantize=true")


def test_without_bitsandbytes_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(LorachainsError, match=r"needs bitsandbytes: pip install 'lorachains\[quantization\]'$"):
        load(saved(tmp_path), quantization="nf4")


def test_other_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match=r"model\.quantization is 'int4': give nf4, int8 or null"):
        load(saved(tmp_path), quantization="int4")


@pytest.mark.usefixtures("bitsandbytes")
def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    with pytest.raises(LorachainsError, match=r"model\.quantization is nf4, and the model is a GGUF file: .* null"):
        load(str(gguf), quantization="nf4", cache_dir=str(tmp_path))
    with pytest.raises(LorachainsError, match=r"model\.quantization is int8, and the model is random weights: .* null"):
        load("any", quantization="int8", random_weights=True, architecture={"model_type": "llama"})
    with pytest.raises(LorachainsError, match="the hub can't be reached"):  # rather than fetch what it would refuse
        load("some-lab/some-model", quantization="nf4", fallback=Wheels({"wheel==1": "file"}, "0" * 64))
