"""What the tests of generation share: models that have something to say, prompts, and two other ways to go on."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from lorachains.chain import Chain
from lorachains.generation import Generator
from lorachains.routing import HardRoute
from tests.adapters import config, randomise
from tests.tiny import VOCAB_SIZE, tiny_model

NO_EOS = VOCAB_SIZE  # transformers takes `None` for the model's own
OTHERS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
}  # fmt: skip
"""One whose windows are shorter than the texts, and one that has no cache of fixed size."""


def model_of(arch: str) -> PreTrainedModel:
    """With weights so much larger than the embeddings that texts don't repeat themselves.

    In float64, but for Bloom: transformers' gives NaN there for left-padded rows.
    """
    dtype = torch.float32 if arch == "bloom" else torch.float64
    if arch in OTHERS:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(arch, vocab_size=VOCAB_SIZE, bos_token_id=1, eos_token_id=2, **OTHERS[arch]),
            dtype=dtype,
        )
    else:
        model = tiny_model(arch, dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            scale = 0.02 if len(parameter) == VOCAB_SIZE else 0.3
            parameter.data = scale * torch.randn(parameter.shape, generator=generator).to(dtype)
    model.eval()
    return model


def chain_of(arch: str, experts: int, **fields: Any) -> Chain:
    chain = Chain(model_of(arch), config("llama" if arch in OTHERS else arch, **fields), range(experts))
    randomise(chain)
    return chain


def generator_of(chain: Chain, eos: int | Sequence[int] | None = None) -> Generator:
    return Generator(chain.model, 0, eos, graphs=False)


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def by_transformers(model: Any, prompts: Sequence[list[int]], steps: int, eos: int = NO_EOS) -> list[list[int]]:
    """Its greedy texts, padded on the left, without what it fills up behind the end."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = GenerationConfig(max_new_tokens=steps, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=eos)
    new = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in new]


@torch.no_grad()
def by_argmax(chain: Chain, prompt: list[int], steps: int, expert: int) -> list[int]:
    """One text through the banks' own route, without cache or padding."""
    ids = list(prompt)
    chain.route = HardRoute(torch.tensor([expert]))
    for _ in range(steps):
        ids.append(int(chain.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    chain.route = None
    return ids[len(prompt) :]
