"""A mixture's decisions and answers, against whole passes over one text at a time without cache, packing or padding."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains import base_reader, scoring
from lorachains.bank import bare
from lorachains.base_reader import BaseReader
from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.chain import Chain
from lorachains.decisions import MODES, one_expert, soft_weights, straight_through
from lorachains.errors import LorachainsError
from lorachains.generation import Generator
from lorachains.generation.lane import Lane
from lorachains.mixture import READS, Mixture
from lorachains.routers import POOLS
from lorachains.routing import HardRoute, Route, SoftRoute
from lorachains.scoring import answer_losses
from tests.adapters import config, randomise
from tests.batches import texts_of
from tests.generation.texts import generator_of, prompts_of
from tests.mixtures import ARCHITECTURES, by_hand, mixture_of, tolerance
from tests.tiny import tiny_model

PROMPTS = prompts_of(7, 19, 1, 33, 12, 4)


def route_of(mixture: Mixture, logits: Tensor) -> Route:
    if mixture.mode == "soft":
        return SoftRoute(soft_weights(logits, mixture.top_k).unsqueeze(0))
    return HardRoute(logits.argmax(-1, keepdim=True))


@torch.no_grad()
def decided_by_hand(mixture: Mixture, ids: Sequence[int], prompt: int) -> Tensor:
    """One text's logits, block by block: a pass over the text for each block, with the blocks before it decided or, by
    the base, without any expert."""
    routes: list[Route] = [HardRoute(torch.tensor([0]))] * len(mixture.blocks)
    found = []
    for block in range(len(mixture.blocks)):
        alone = bare(mixture.chain.banks.values()) if mixture.reads == "base" else nullcontext()
        with mixture.blocks.routed(routes), alone:
            x = mixture.model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[block]
        weight = mixture.routers.weight[block]
        logits = weight @ by_hand(x[0, :prompt], mixture.routers.pool).to(weight.dtype)
        routes[block] = route_of(mixture, logits)
        found.append(logits)
    return torch.stack(found)


@torch.no_grad()
def answered_by_hand(mixture: Mixture, prompt: list[int], steps: int) -> list[int]:
    """Greedy, deciding anew from the prompt's part of the text at each token, without a cache."""
    ids = list(prompt)
    for _ in range(steps):
        logits = decided_by_hand(mixture, ids, len(prompt))
        if mixture.one_each:
            routes: list[Route] = [HardRoute(one_expert(logits.unsqueeze(1), mixture.mode))] * len(mixture.blocks)
        else:
            routes = [route_of(mixture, of_block) for of_block in logits]
        with mixture.blocks.routed(routes):
            ids.append(int(mixture.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("arch", "fields"),
    [(arch, {"reads": reads}) for arch in ARCHITECTURES for reads in READS]
    + [("llama", {"pool": pool}) for pool in POOLS[1:]]
    + [(arch, {"mode": "soft", "reads": "experts"}) for arch in ("llama", "bloom")]
    + [("llama", {"mode": "soft", "top_k": 2, "reads": "experts"})],
)
def test_a_mixed_batch_decides_as_each_text_alone(arch: str, fields: dict[str, Any]) -> None:
    mixture = mixture_of(arch, **fields)
    logits = mixture.logits(PROMPTS)
    expected = torch.stack([decided_by_hand(mixture, prompt, len(prompt)) for prompt in PROMPTS], 1)
    torch.testing.assert_close(logits, expected, rtol=tolerance(mixture), atol=tolerance(mixture))
    assert len(set(mixture.experts(logits).tolist())) > 1, "or there is nothing to decide"


@pytest.mark.parametrize("arch", ["llama", "opt", "bloom"])
def test_a_block_can_have_two_routers(arch: str) -> None:
    """The second reads what its feed-forward network reads; the first's banks don't follow it."""
    mixture = mixture_of(arch, shared=False, mode="argmax", targets="all-linear", reads="experts")
    assert len(mixture.blocks) == 4
    names = {id(bank): name for name, bank in mixture.chain.banks.items()}
    for place, banks in enumerate(mixture.blocks.banks):
        assert {"attn" in names[id(bank)] or "attention" in names[id(bank)] for bank in banks} == {place % 2 == 0}
    logits = mixture.logits(PROMPTS[:4])
    for text, prompt in enumerate(PROMPTS[:4]):
        routes: list[Route] = [HardRoute(of_place[text].argmax(-1, keepdim=True)) for of_place in logits]
        read: list[Tensor] = []
        with ExitStack() as hooks, mixture.blocks.routed(routes), torch.no_grad():
            for layer in mixture.blocks.layers:
                handle = layer.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0]))
                hooks.callback(handle.remove)
            mixture.model(torch.tensor([prompt]))
        for place, x in enumerate(read):
            weight = mixture.routers.weight[place]
            expected = weight @ by_hand(x.reshape(-1, x.shape[-1]), "mean_rms").to(weight.dtype)
            off = tolerance(mixture)
            torch.testing.assert_close(logits[place, text], expected, rtol=off, atol=off)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_order_and_company_change_nothing(arch: str, reads: str) -> None:
    mixture = mixture_of(arch, reads=reads)
    off = tolerance(mixture)
    logits, order = mixture.logits(PROMPTS), [4, 2, 0, 5, 1, 3]
    torch.testing.assert_close(mixture.logits([PROMPTS[i] for i in order]), logits[:, order], rtol=off, atol=off)
    torch.testing.assert_close(mixture.logits(PROMPTS[3:4]), logits[:, 3:4], rtol=off, atol=off)


@pytest.mark.parametrize("arch", ["llama", "opt"])
def test_a_decision_in_a_filled_batch_is_the_plain_one(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts few and many, short and long: as they are read to be recorded on a GPU."""
    mixture, tokens = mixture_of(arch, reads="base"), set[int]()

    def unrecorded(batch: TokenBatch) -> tuple[Tensor, ...]:
        tokens.add(len(batch.input_ids))
        return mixture.by_base._whole(batch)

    monkeypatch.setattr(base_reader, "why_not", lambda _: None)
    monkeypatch.setattr(base_reader, "Replayed", lambda *_: unrecorded)
    for prompts in (PROMPTS, PROMPTS[2:4], [list(range(1, 60))], PROMPTS):
        logits = mixture.logits(prompts, graphs=True)
        torch.testing.assert_close(logits, mixture.logits(prompts), rtol=tolerance(mixture), atol=tolerance(mixture))
    assert tokens
    assert all(size % 64 == 0 for size in tokens)


def test_a_model_that_can_not_be_recorded_decides_plainly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = mixture_of("llama", reads="base")

    def fails(_: TokenBatch) -> tuple[Tensor, ...]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(base_reader, "why_not", lambda _: None)
    monkeypatch.setattr(base_reader, "Replayed", lambda *_: fails)
    with caplog.at_level("INFO"):
        found = [mixture.logits(PROMPTS, graphs=True) for _ in range(2)]
    assert torch.equal(found[0], mixture.logits(PROMPTS))
    assert torch.equal(found[1], found[0])
    assert caplog.text.count("deciding without CUDA graphs: operation not permitted") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replayed_decision_is_the_plain_one() -> None:
    """Passed plainly, recorded, replayed, and replayed of other prompts of that size."""
    model: Any = tiny_model("llama", torch.bfloat16)
    mixture = Mixture(Chain(model.cuda().eval(), config("llama"), seeds=[0, 1, 2]), reads="base")
    mixture.chain.flatten()
    mixture.routers.cuda()
    torch.nn.init.normal_(mixture.routers.rows)
    others = [[*reversed(prompt)] for prompt in PROMPTS]
    for prompts in (PROMPTS, PROMPTS, PROMPTS, others, PROMPTS):
        logits = mixture.logits(prompts, graphs=True)
        torch.testing.assert_close(logits, mixture.logits(prompts), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(("arch", "mode"), [(arch, "vote") for arch in ARCHITECTURES] + [("llama", m) for m in MODES])
def test_cached_answers_in_a_mixed_batch_are_those_of_deciding_anew_at_each_token(
    arch: str, mode: str, reads: str
) -> None:
    """Left-padded, with a cache, decided once; against right there, without, decided again from the whole text."""
    mixture = mixture_of(arch, mode=mode, reads=reads)
    prompts = PROMPTS[:4] if arch != "bloom" else PROMPTS[:2]
    ours = mixture.generate(generator_of(mixture.chain), prompts, 5, mixture.logits(prompts))
    assert ours == [answered_by_hand(mixture, prompt, 5) for prompt in prompts]


@pytest.mark.parametrize("mode", ["argmax", "soft"])
def test_no_graph_is_made_of_routes_that_change(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a generator that is made while blocks follow routes of their own."""
    mixture, asked, advance = mixture_of("llama", mode=mode), list[bool](), Lane.advance
    logits = mixture.logits(PROMPTS[:2])
    monkeypatch.setattr(Generator, "_captures", property(lambda _: True))
    monkeypatch.setattr(Generator, "_own_stream", lambda _: nullcontext())

    def note(lane: Lane, graphs: bool) -> None:
        asked.append(graphs)
        advance(lane, False)

    monkeypatch.setattr(Lane, "advance", note)
    with mixture.decided(logits):
        generator = Generator(mixture.model, 0, None, graphs=True)
        generator(PROMPTS[:2], 6)
    assert len(generator.banks) == len(mixture.chain.banks)
    assert asked
    assert not any(asked)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("way", ["straight_through", "soft"])
@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_a_routed_training_pass_loses_what_each_text_loses_alone(arch: str, way: Any, reads: str) -> None:
    """Whatever the label: the way goes by the routers' decisions from each prompt, and has a gradient for them."""
    mixture = mixture_of(arch, mode="soft" if way == "soft" else "argmax", reads=reads)
    texts = texts_of((9, 2), (5, 4), (30, 1), (17, 12))
    batch = pack(texts, [2, 0, 1, 0], experts=3)
    mixture.chain.route = None
    with mixture.training(batch, way):
        losses = answer_losses(mixture.model, batch)
    expected = torch.cat([alone(mixture, text, way) for text in texts])
    order = torch.cat([(batch.candidate == i).nonzero()[:, 0] for i in range(len(texts))])
    torch.testing.assert_close(losses[order], expected, rtol=tolerance(mixture), atol=tolerance(mixture))
    [gradient] = torch.autograd.grad(losses.sum(), mixture.routers.rows)
    assert gradient.abs().max() > 0


@torch.no_grad()
def alone(mixture: Mixture, text: Tokens, way: str) -> Tensor:
    prompt = len(text.input_ids) - len(text.answer)
    logits = decided_by_hand(mixture, text.input_ids, prompt)
    weights = soft_weights(logits) if way == "soft" else straight_through(logits)
    with mixture.blocks.routed([SoftRoute(of_block.unsqueeze(0)) for of_block in weights]):
        scores = mixture.model(torch.tensor([text.input_ids])).logits[0, prompt - 1 : -1]
    return torch.nn.functional.cross_entropy(scores, torch.tensor(text.answer), reduction="none")


@pytest.mark.parametrize(("pool", "knows"), [("mean_rms", True), ("mean", True), ("last", False)])
def test_the_last_prompt_token_tells_the_first_block_nothing(pool: str, knows: bool) -> None:
    """All prompts end in the same words, as a template's do: whatever its weights, the first block sees one text."""
    prompts = [[*prompt, 7, 8, 9] for prompt in PROMPTS]
    for seed in range(3):
        decided = mixture_of("llama", seed=seed, pool=pool).logits(prompts)
        assert (len(decided[0].argmax(-1).unique()) > 1) <= knows
        spread = (decided[0] - decided[0, 0]).abs().max()
        assert bool(spread > 1e-6) == knows
        assert (decided[1] - decided[1, 0]).abs().max() > 1e-6, "further up the prompt has come to the last token"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_the_base_reads_is_the_same_whoever_serves_a_text(arch: str) -> None:
    """So that routers decide in use by what they have learned from, and go on to when an expert is trained on."""
    mixture = mixture_of(arch, reads="base")
    texts = texts_of((9, 2), (5, 4), (30, 1))
    read = []
    for owners in ([0, 1, 2], [2, 2, 0]):
        batch = pack(texts, owners, experts=3)
        with mixture.training(batch, "label") as (prompts, pooled):
            there = torch.stack(pooled)[:, prompts.there]
        [order] = [sorted(range(3), key=lambda i: owners[i])]
        read.append(there[:, torch.tensor([order.index(i) for i in range(3)])])
    torch.testing.assert_close(read[0], read[1], rtol=tolerance(mixture), atol=tolerance(mixture))
    randomise(mixture.chain, seed=5)
    again = mixture.features([text.input_ids[: -len(text.answer)] for text in texts], [0, 0, 0])
    torch.testing.assert_close(again, read[0], rtol=tolerance(mixture), atol=tolerance(mixture))


@pytest.mark.parametrize("reads", READS)
def test_a_pass_that_is_tried_out_on_the_way_changes_nothing(reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that by which it is found out whether the model ends in its head, where there are many answers."""
    batch = pack(texts_of((9, 2), (5, 4), (30, 1), (17, 12)), [2, 0, 1, 0], experts=3)
    found = []
    for chunk in (3, 1000):
        monkeypatch.setattr(scoring, "CHUNK", chunk)
        mixture = mixture_of("llama", reads=reads)
        with mixture.training(batch, "soft") as (_, pooled):
            losses = answer_losses(mixture.model, batch)
        assert len(pooled) == len(mixture.blocks)
        found.append(torch.autograd.grad(losses.sum(), mixture.routers.rows)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["llama", "bloom"])
@pytest.mark.parametrize("room", [True, False])
def test_what_was_read_once_is_kept_where_there_is_room(
    room: bool, arch: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixture, texts = mixture_of(arch, reads="base"), texts_of((9, 2), (5, 4), (30, 1))
    batch = pack(texts, [2, 0, 2], experts=3).numbered([1, 2, 0])
    with mixture.training(batch, "label") as (prompts, read):
        expected = torch.stack(read)[:, prompts.there]
    monkeypatch.setattr(BaseReader, "_has_room", lambda *_: room)
    mixture.by_base.keep([texts[i].input_ids[: -len(texts[i].answer)] for i in (2, 0, 1)])
    assert (mixture.by_base.known is not None) == room
    assert ("isn't kept, for lack of memory" in caplog.text) != room
    with mixture.training(batch, "label") as (_, read):
        torch.testing.assert_close(torch.stack(read)[:, prompts.there], expected, rtol=1e-5, atol=1e-5)


def test_another_reader_is_refused() -> None:
    with pytest.raises(LorachainsError, match=r"method\.reads is 'expert': choose base or experts"):
        mixture_of("llama", reads="expert")
