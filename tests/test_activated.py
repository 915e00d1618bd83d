"""An activated adapter serves no token before its start: as PEFT's aLoRA does, and as two passes by hand do."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lorachains.batch import IGNORED, TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.filling import filled
from lorachains.packing import hard_route
from lorachains.routing import HardRoute
from lorachains.scoring import answer_logits, answer_losses
from tests.adapters import BIAS, WITH_BIAS, config, peft_gradients, peft_twin, randomise
from tests.tiny import ARCHITECTURES, tiny_model

INVOCATION = [7, 11, 13]
PROMPTS = [[5, 9, 14, 4, 21], [8, 3], [5, 9, 14, 4, 33, 6]]
ANSWERS = [[19, 23, 4], [6, 5], [31, 19, 18, 2]]


def texts(starts: bool = True) -> list[Tokens]:
    return [
        Tokens([*p, *INVOCATION, *a], [IGNORED] * (len(p) + 3) + a, start=len(p) * starts)
        for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]


def chain_of(arch: str, experts: int, **fields: Any) -> Chain:
    chain = Chain(tiny_model(arch, torch.float64), config(arch, **fields), range(experts))
    randomise(chain)
    return chain


def of(model: Any, chain: Chain, expert: int) -> PeftModel:
    """PEFT's aLoRA with the weights of one adapter."""
    chain.config.alora_invocation_tokens = INVOCATION
    return peft_twin(model, chain, expert)


def routed(chain: Chain, batch: TokenBatch) -> TokenBatch:
    chain.route = hard_route(chain.model, batch)
    return batch


FOLLOWED: dict[str, dict[str, Any]] = {"opt": {"target_modules": ["q_proj", "v_proj"]}}
"""What PEFT's aLoRA can't: layers whose input has its rows and tokens in one dimension."""
CASES: list[tuple[str, dict[str, Any]]] = [(a, {} | FOLLOWED.get(a, {})) for a in ARCHITECTURES]
CASES += [(a, BIAS | FOLLOWED.get(a, {})) for a in WITH_BIAS]


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize(("arch", "fields"), CASES)
def test_logits_and_gradients_are_those_of_pefts_alora(arch: str, fields: dict[str, Any], experts: int) -> None:
    """Text by text; in one stream, or padded where the architecture reads none."""
    chain, owners = chain_of(arch, experts, **fields), [2, 0, 2] if experts > 1 else None
    batch = routed(chain, pack(texts(), owners, 3, experts))
    assert batch.active is not None
    assert not batch.active.all()
    answer_losses(chain.model, batch).sum().backward()
    logits = answer_logits(chain.model, batch).detach()
    gradients: dict[int, dict[str, Tensor]] = {}
    for i, text in enumerate(texts()):
        expert = owners[i] if owners else 0
        twin = of(tiny_model(arch, torch.float64), chain, expert)
        theirs = twin(input_ids=torch.tensor([text.input_ids])).logits[0, -len(text.answer) - 1 : -1]
        torch.testing.assert_close(logits[batch.candidate == i], theirs.detach())
        torch.nn.functional.cross_entropy(theirs, torch.from_numpy(text.answer), reduction="sum").backward()
        known = gradients.setdefault(expert, {})
        for name, gradient in peft_gradients(twin).items():
            known[name] = known.get(name, 0) + gradient
    for expert, own in gradients.items():
        for name, gradient in own.items():
            layer, _, key = name.rpartition(".")
            ours = getattr(chain.banks[layer], key).grad
            assert ours is not None
            torch.testing.assert_close(ours[expert], gradient)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_is_the_base_up_to_its_start_and_an_ordinary_adapter_over_that_from_there(arch: str) -> None:
    """Two passes by hand: the base's keys and values of the prompt, and the adapter behind them."""
    chain, base = chain_of(arch, 1), tiny_model(arch, torch.float64)
    batch = routed(chain, pack(texts()))
    ours = answer_logits(chain.model, batch)
    chain.route = None
    for i, text in enumerate(texts()):
        before, rest = torch.tensor([text.input_ids[: text.start]]), torch.tensor([text.input_ids[text.start : -1]])
        cache = base(input_ids=before, use_cache=True).past_key_values
        theirs = chain.model(input_ids=rest, past_key_values=cache, use_cache=True).logits[0, -len(text.answer) :]
        torch.testing.assert_close(ours[batch.candidate == i], theirs)


@pytest.mark.parametrize("owners", [None, [0, 0, 0], [2, 0, 2]])
@pytest.mark.parametrize(("share", "longest"), [(False, None), (True, None), (False, 40)])
def test_sharing_and_filling_change_nothing(owners: list[int] | None, share: bool, longest: int | None) -> None:
    """Texts that begin alike, of which one is activated earlier than the others."""
    experts = 3 if owners else 1
    chain, long = chain_of("llama", experts), list(range(20, 48))
    alike = [Tokens([*long, *a], [IGNORED] * 28 + a, start=s) for a, s in zip(ANSWERS, (25, 25, 18), strict=True)]
    batch = pack(alike, owners, 3, experts, share)
    assert (batch.keys is not None) == share
    found = answer_losses(chain.model, routed(chain, filled(batch, longest) if longest else batch))
    for i, text in enumerate(alike):
        alone = answer_losses(chain.model, routed(chain, pack([text], owners and [owners[i]], 3, experts)))
        torch.testing.assert_close(found[: len(batch.targets)][batch.candidate == i], alone)


def test_equal_texts_that_are_activated_elsewhere_are_two() -> None:
    text = texts()[0]
    batch = pack([text, Tokens(text.input_ids, text.labels, start=2), text])
    assert len(batch.texts) == 2


def test_without_a_start_nothing_is_said_of_activation() -> None:
    batch = pack(texts(starts=False))
    assert batch.active is None
    assert hard_route(tiny_model("llama"), batch) is None


def test_dropout_is_that_of_the_active_tokens() -> None:
    """The others' outputs are the base's in training, too."""
    chain = chain_of("llama", 1, lora_dropout=0.5)
    chain.model.train()
    bank = next(iter(chain.banks.values()))
    active = torch.tensor([False, False, True, True])
    x = torch.randn(4, bank.in_features, dtype=torch.float64)
    chain.route = HardRoute(torch.zeros(1, dtype=torch.long), None, active)
    difference = (bank(x) - bank.base_layer(x)).abs().sum(-1) > 0
    assert torch.equal(difference, active)
