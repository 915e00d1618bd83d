"""MoE-LoRA against a sum over experts by hand, and its training as that of one row."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from safetensors.torch import load_file

from lorachains.batch import Tokens, pack
from lorachains.decisions import soft_weights
from lorachains.errors import LorachainsError
from lorachains.filling import filled
from lorachains.methods import MoeLora
from lorachains.routers import balance_losses
from lorachains.run_folder import RunFolder
from lorachains.scoring import pass_over
from tests.adapters import inputs, randomise
from tests.batches import texts_of
from tests.methods.test_resume import stopped_and_resumed
from tests.mixtures import tolerance
from tests.runs import Log, fit, language_model, make_method, run

TASKS = ["one", "two", "free"]
NAMES = "method.names=[one,two,free]"
DATA: dict[str, Any] = {"tasks": TASKS, "train_size": 9, "val_size": 3, "test_size": 3}


def moe(*overrides: str, arch: str = "llama") -> MoeLora:
    method = make_method("method=moe_lora", NAMES, *overrides, base=language_model(arch, torch.float64))
    assert isinstance(method, MoeLora)
    return method


@pytest.mark.parametrize("top_k", [None, 2])
def test_each_token_has_its_own_sum_of_experts(top_k: int | None) -> None:
    """In the first layer: `W x + Σ_e w_e s B_e A_e x`, with the softmax over the best of the router's logits."""
    method = moe(f"method.top_k={'null' if top_k is None else top_k}")
    randomise(method.chain)
    method.routers.rows.data.normal_(generator=torch.Generator().manual_seed(0))
    name, bank = next(iter(method.chain.banks.items()))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    bank.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    with method.mixture.by_token(), torch.no_grad():
        states = method.model(inputs(2), output_hidden_states=True).hidden_states[0]
    x, y = seen[0]
    expected = bank.base_layer(x)
    for row, token in ((r, t) for r in range(2) for t in range(9)):
        read = states[row, token] / states[row, token].square().mean().sqrt()
        logits = [method.routers.rows[e, :32] @ read for e in range(3)]
        kept = sorted(range(3), key=lambda e: -logits[e])[: top_k or 3]
        total = sum(logits[e].exp() for e in kept)
        for e in kept:
            delta = bank.scaling[e] * bank.lora_B[e] @ bank.lora_A[e] @ x[row, token]
            expected[row, token] += (logits[e].exp() / total * delta).detach()
    assert "q_proj" in name
    torch.testing.assert_close(y, expected, rtol=tolerance(method.mixture), atol=tolerance(method.mixture))


def test_the_balance_is_that_of_switch_transformers() -> None:
    logits = torch.randn(2, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    expected = [4 * sum(chosen[b, :, e].mean() * logits[b].softmax(-1)[:, e].mean() for e in range(4)) for b in (0, 1)]
    every = torch.ones(50, dtype=torch.bool)
    torch.testing.assert_close(balance_losses(logits, chosen, every), torch.tensor(expected, dtype=torch.float64))
    padding = torch.rand(2, 9, 4, dtype=torch.float64)
    found = balance_losses(
        torch.cat([logits, padding], 1), torch.cat([chosen, padding], 1), torch.cat([every, ~every[:9]])
    )
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    alike = torch.zeros(1, 4, 4, dtype=torch.float64)
    assert balance_losses(alike, torch.eye(4, dtype=torch.float64).unsqueeze(0), every[:4]) == pytest.approx(1.0)


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_padding_does_not_count_in_the_balance(arch: str) -> None:
    """Neither that of a batch which is filled up nor that of texts one below the other."""
    method = moe("method.top_k=2", "method.balance=1", arch=arch)
    method.routers.rows.data.normal_(generator=torch.Generator().manual_seed(0))
    texts = texts_of((9, 3), (14, 5), (4, 2))
    batch = pack(texts)
    alone = [torch.stack([of.flatten(0, -2) for of in found]) for found in map(partial(_logits, method), texts)]
    logits = torch.cat(alone, 1)
    expected = balance_losses(logits, soft_weights(logits, 2), torch.ones(logits.shape[1], dtype=torch.bool)).mean()
    for given in [batch, filled(batch, 128)] if arch == "llama" else [batch]:
        torch.testing.assert_close(method.losses(given)["balance"], expected.unsqueeze(0))


def _logits(method: MoeLora, text: Tokens) -> list[torch.Tensor]:
    with torch.no_grad(), method.mixture.by_token() as found:
        pass_over(method.model, pack([text]))
    return found


def test_it_is_trained_as_one_row() -> None:
    log, method = Log(), moe("method.top_k=2", "method.balance=0.01")
    assert method.why_plain is None
    fit(method, "trainer.max_epochs=1", "trainer.gradient_clip_val=0.1", logger=log, **DATA)
    assert len(log.of("train/loss")) == 7
    assert log.of("train/lr")[0] == 5e-3
    assert log.of("train/gradient_norm")[0] > 0
    lm, balance = log.of("train/lm"), log.of("train/balance")
    assert log.of("train/loss") == pytest.approx([a + b for a, b in zip(lm, balance, strict=True)])
    assert {f"val/{name}/loss" for name in TASKS} <= {key for _, metrics in log.rows for key in metrics}
    assert method.figures()["adapter/trainable_parameters"] == sum(p.numel() for p in method.chain.parameters())


def test_stopped_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    overrides = ["method=moe_lora", NAMES, "trainer.max_epochs=2"]
    run(tmp_path / "whole", *overrides, data=DATA)
    stopped_and_resumed(tmp_path / "parts", *overrides, kills=[("after a batch", 4)], data=DATA)
    for file in ["router.safetensors", *(f"{name}/adapter_model.safetensors" for name in TASKS)]:
        ours, theirs = (tmp_path / way / "adapters" / file for way in ("parts", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    best = RunFolder(tmp_path / "whole").read_metrics()["best/optimizer_step"]
    assert best in (7, 14)
    assert load_file(tmp_path / "whole" / "adapters" / "router.safetensors")["weight"].shape == (2, 3, 32)


@pytest.mark.parametrize("arch", ["opt", "bloom"])
def test_other_architectures(arch: str) -> None:
    targets = "query_key_value" if arch == "bloom" else "fc1"
    method = moe(f"adapter.target_modules=[{targets}]", arch=arch)
    before = method.routers.rows.detach().clone()
    fit(method, "trainer.max_steps=2", **DATA)
    assert not torch.equal(method.routers.rows, before)


def test_refusals() -> None:
    with pytest.raises(InstantiationException, match=r"method.balance is -1"):
        moe("method.balance=-1")
    with pytest.raises(LorachainsError, match="routes within a block aren't compiled"):
        fit(moe(), "trainer.compile=true", **DATA)
