"""A decode step needs nothing of the host, so that a graph of it replays it; where it can't be so, that is said."""

import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lorachains.generation import Generator, Sampling
from lorachains.generation.lane import HostWatch, why_no_static_cache
from lorachains.generation.serving import serving
from tests.adapters import randomise
from tests.generation.texts import NO_EOS, by_transformers, chain_of, generator_of, model_of, prompts_of
from tests.tiny import ARCHITECTURES


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gemma3_text"])
@pytest.mark.parametrize("sampling", [None, Sampling(range(3), top_p=0.9)])
def test_a_step_runs_without_the_host(arch: str, sampling: Sampling | None) -> None:
    generator = generator_of(chain_of(arch, 3), 5)
    generator(prompts_of(3, 9, 5), 8, torch.arange(3), sampling)
    [lane] = generator._lanes.values()
    with torch.no_grad(), serving(generator.banks, lane.served), HostWatch() as watch:
        lane.advance(graphs=False)
        assert not watch.asked
        bool(lane.done.all())
    assert watch.asked == {"_local_scalar_dense"}


def test_a_step_that_needs_the_host_is_never_captured(caplog: pytest.LogCaptureFixture) -> None:
    """Rotary embeddings that look how long the texts are."""
    config = model_of("llama").config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = type(model_of("llama"))(config).eval()
    expected = by_transformers(model, prompts_of(3, 9), 12)
    generator = Generator(model, 0, None, graphs=True)
    generator(prompts_of(3, 9), 1)
    [lane] = generator._lanes.values()
    with torch.no_grad(), caplog.at_level(logging.INFO, "lorachains"):
        for _ in range(11):
            generator._step(lane, graphs=True)
    assert lane.out[:, :12].tolist() == expected
    assert [record.message for record in caplog.records] == [
        "generating without CUDA graphs: LlamaForCausalLM needs the host in each step (_local_scalar_dense)"
    ]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_growing_cache_gives_the_same_texts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = model_of(arch), prompts_of(3, 9, 5)
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    generator = Generator(model, 0, NO_EOS, graphs=False)
    expected = by_transformers(model, prompts, 12)
    assert [generator(prompts, 12) for _ in range(2)] == [expected, expected]
    [lane] = generator._lanes.values()
    assert isinstance(lane.cache, DynamicCache)


@pytest.mark.parametrize(
    ("arch", "attention", "why"),
    [
        ("gpt_neo", "eager", "GPTNeoForCausalLM can't work with one of fixed size"),
        ("llama", "flash_attention_2", "flash_attention_2 attention would read one of fixed size to its end"),
        ("gemma3_text", "sdpa", None),
    ],
)
def test_why_a_cache_must_grow_is_said(arch: str, attention: str, why: str | None) -> None:
    model = model_of(arch)
    model.config._attn_implementation = attention
    assert why_no_static_cache(model) == why


def test_a_cache_that_must_grow_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    generator = Generator(model_of("gpt_neo"), 0, None, graphs=True)
    with caplog.at_level(logging.INFO, "lorachains"):
        generator(prompts_of(3), 2)
        generator(prompts_of(5), 2)
    assert len(caplog.records) == 1
    assert "GPTNeoForCausalLM" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gemma3_text"])
@pytest.mark.parametrize("sampling", [None, Sampling(range(24), top_p=0.9)])
def test_replayed_steps_are_the_eager_ones(arch: str, sampling: Sampling | None) -> None:
    """Also with other adapters in the graph's buffers, and after the base has moved to other addresses."""
    chain, prompts = chain_of(arch, 8, target_modules="all-linear"), prompts_of(*[3 + row % 7 for row in range(24)])
    model: Any = chain.model
    model.cuda()
    adapter = torch.arange(24) % 8
    eager, replayed = generator_of(chain, 5), Generator(chain.model, 0, 5, graphs=True)
    for seed in range(3):
        randomise(chain, seed)
        for bank in chain.banks.values():
            bank.to("cuda")
        expected = eager(prompts, 40, adapter, sampling)
        assert replayed(prompts, 40, adapter, sampling) == expected
        torch._C._cuda_clearCublasWorkspaces()  # as Lightning does after a fit, and the recording of another graph
        torch.cuda.empty_cache()
        assert replayed(prompts, 40, adapter, sampling) == expected
        # Bloom of some releases of transformers asks the host in each step: found out, logged, and not captured.
        assert [lane.graph is not None for lane in replayed._lanes.values()] == [replayed._replayable]
        assert replayed._replayable or arch == "bloom"
        if seed == 1:
            moved = [parameter.data for parameter in model.parameters()]
            model.cpu().cuda()
            del moved  # held till now, so that no weight found its old place
