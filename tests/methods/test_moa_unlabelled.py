"""MoA's rows without a label: what they add to stage 2's loss, what they leave alone, and where they stay out."""

from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor
from torch.nn import functional as F

from lorachains.bank import bare
from lorachains.batch import TokenBatch, Tokens, pack
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.tokens import NO_TASK, Serving, encode_train
from lorachains.decisions import hard_weights, soft_weights, straight_through
from lorachains.errors import LorachainsError
from lorachains.methods import Moa
from lorachains.mixture import READS
from lorachains.models import LanguageModel
from lorachains.routing import HardRoute, SoftRoute
from lorachains.run_folder import RunFolder
from lorachains.scoring import answer_logits
from tests.batches import texts_of
from tests.data.stub import examples
from tests.methods.test_moa import DATA, NAMES, OVERRIDES, TASKS, mixing, moa
from tests.methods.test_resume import stopped_and_resumed
from tests.mixtures import by_hand
from tests.runs import Log, fit, language_model, make_data, make_method, run, same

TEXTS = texts_of((21, 4), (9, 1), (33, 7), (14, 3), (26, 5))
WAYS = {"soft": soft_weights, "straight_through": straight_through, "argmax": hard_weights}


def with_free(data: TaskDataModule, n: int = 5) -> TaskDataModule:
    """The data with `n` training rows without a label."""
    data.setup()
    free = encode_train(data.tokenizer, examples(n, name="nobody's", candidates=()), NO_TASK, data.max_length)
    return data.with_rows({"train": data.rows("train") + free}, data.tasks)


def free_data(base: LanguageModel, n: int = 5) -> RunsDataModule:
    return RunsDataModule([with_free(make_data(base, **DATA), n)])


def losses_of(method: Moa, owners: list[int]) -> tuple[TokenBatch, dict[str, Tensor]]:
    """Those of `TEXTS`; the owner 3 is nobody."""
    batch = pack(TEXTS, owners, experts=max(3, *(owner + 1 for owner in owners)))
    method.model.eval()
    method.route(batch)
    return batch, method.losses(batch)


def alone(method: Moa, text: Tokens, owner: int, way: str) -> tuple[Tensor, Tensor]:
    """One text's answer losses and router logits, by a loop over its blocks with plain passes."""
    mixture, ids = method.mixture, torch.tensor([text.input_ids[:-1]])
    routes: list[Any] = [HardRoute(torch.tensor([0 if owner == 3 else owner]))] * len(mixture.blocks)
    logits, prompt = [], ids.shape[1] - len(text.answer) + 1
    for block in range(len(mixture.blocks)):
        without = bare(mixture.chain.banks.values()) if mixture.reads == "base" else nullcontext()
        with mixture.blocks.routed(routes), without:
            x = mixture.model(ids, output_hidden_states=True).hidden_states[block]
        found = mixture.routers.weight[block] @ by_hand(x[0, :prompt], "mean_rms")
        logits.append(found)
        if owner == 3:
            routes[block] = SoftRoute(WAYS[way](found).unsqueeze(0))
    with mixture.blocks.routed(routes):
        of_text = mixture.model(ids).logits[0, prompt - 1 :]
    return F.cross_entropy(of_text, torch.from_numpy(text.answer), reduction="none"), torch.stack(logits)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("arch", ["llama", "bloom"])
@pytest.mark.parametrize("way", WAYS)
def test_a_mixed_batch_is_its_texts_one_by_one(way: str, arch: str, reads: str) -> None:
    """Loss and gradients; η times the cross-entropy of those with a label alone."""
    method = mixing("method.eta=0.7", f"method.unlabelled={way}", f"method.reads={reads}", arch=arch)
    owners = [2, 3, 0, 3, 2]
    _, terms = losses_of(method, owners)
    found = [alone(method, text, owner, way) for text, owner in zip(TEXTS, owners, strict=True)]
    means = [
        torch.cat([losses for (losses, _), o in zip(found, owners, strict=True) if o == owner]).mean()
        for owner in (0, 2, 3)
    ]
    router = torch.stack(
        [
            F.cross_entropy(logits, torch.full((len(logits),), owner))
            for (_, logits), owner in zip(found, owners, strict=True)
            if owner < 3
        ]
    ).mean()
    near = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    near(terms["lm"], torch.stack([means[0], means[0] * 0, means[1]]))
    near(terms["unlabelled"].sum(), means[2])
    near(terms["router"].sum(), 0.7 * router)
    ours = method.differentiate(torch.stack(list(terms.values())).sum())
    theirs = method.differentiate(sum(means) + 0.7 * router)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_without_any_label_there_is_the_answers_loss_alone(way: str) -> None:
    method = mixing("method.eta=5", f"method.unlabelled={way}")
    batch, terms = losses_of(method, [3] * 5)
    assert (terms["router"] == 0).all()
    assert (terms["lm"] == 0).all()
    ours = method.differentiate(torch.stack(list(terms.values())).sum())
    with method.mixture.training(batch, "label", way):  # type: ignore[arg-type]
        loss = F.cross_entropy(answer_logits(method.model, batch), batch.targets)
    torch.testing.assert_close(terms["unlabelled"].sum(), loss)
    theirs = method.differentiate(loss)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert (ours[0] != 0).any()
    assert bool((ours[1] != 0).any()) == (way != "argmax"), "the last takes no gradient to the routers"


@pytest.mark.parametrize("route", ["label", "straight_through", "soft"])
def test_a_batch_whose_texts_all_have_labels_is_as_it_was(route: str) -> None:
    method = mixing("method.eta=0.7", f"method.route={route}")
    _, terms = losses_of(method, [2, 1, 0, 0, 2])
    assert terms.keys() == {"lm", "router"}
    plain = method.differentiate(torch.stack(list(terms.values())).sum())
    method.some_unlabelled = True  # as in a run that has such rows in other batches
    _, again = losses_of(method, [2, 1, 0, 0, 2])
    assert (again["unlabelled"] == 0).all()
    assert all(torch.equal(again[key], terms[key]) for key in terms)
    beside = method.differentiate(torch.stack(list(again.values())).sum())
    assert all(torch.equal(a, b) for a, b in zip(plain, beside, strict=True))


def test_stage_1_does_without_them_and_stage_2_takes_them_all(caplog: pytest.LogCaptureFixture) -> None:
    """The batches of rows with labels are bit for bit those of a run without the others."""
    settings = ["method.stage1_epochs=2", "method.router_lr=1e-3"]
    ours, log, free = moa(*settings), Log(), free_data(language_model())
    with caplog.at_level("INFO"):
        fit(ours, "trainer.max_epochs=3", logger=log, module=free)
    assert "5 training rows without a label are left out in stage 1" in caplog.messages
    theirs, other = moa(*settings), Log()
    fit(theirs, "trainer.max_epochs=3", logger=other, **DATA)
    for name in TASKS:
        of_stage_1 = [
            len(log_.of(f"train/loss/{name}")) - len(log_.of(f"train/router/{name}")) for log_ in (log, other)
        ]
        assert log.of(f"train/loss/{name}")[: of_stage_1[0]] == other.of(f"train/loss/{name}")[: of_stage_1[1]]
    told = [sum(row.get(f"train/unlabelled/{name}", 0.0) > 0 for _, row in log.rows) for name in TASKS]
    assert told == [5, 5, 5], "one row beside each of five of the seven batches; all experts learn from it"
    assert not same(ours.chain.state_dict(), theirs.chain.state_dict())


def test_where_no_router_learns_they_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = moa("method.eta=0", "method.stage1_epochs=1"), moa("method.eta=0", "method.stage1_epochs=1")
    with caplog.at_level("INFO"):
        fit(ours, "trainer.max_epochs=2", module=free_data(ours.base))
    assert "5 training rows without a label are left out since no router learns" in caplog.messages
    fit(theirs, "trainer.max_epochs=2", **DATA)
    assert same(ours.chain.state_dict(), theirs.chain.state_dict())


@pytest.mark.parametrize("n", [5, 7, 100])
def test_they_stand_beside_the_batches_evenly_each_epoch_in_another_order(n: int) -> None:
    data = with_free(make_data(language_model(), **DATA), n)
    data.serve(Serving(1, 3), by_length=False)
    loader, plain = data.train_dataloader(), make_data(language_model(), **DATA)
    plain.setup()
    plain.serve(Serving(1, 3), by_length=False)
    epochs = []
    for _ in range(2):
        free, sizes = list[int](), list[int]()
        for batch, labelled in zip(loader.batches, plain.train_dataloader().batches, strict=True):
            beside = [row for _, row in batch if row >= 27]
            assert len(batch) - len(beside) == len(labelled)
            free, sizes = free + beside, [*sizes, len(beside)]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 4, "no more than data.batch_size"
        assert len(set(free)) == len(free) == min(n, 28)
        epochs.append(free)
    assert epochs[0] != epochs[1]


def test_an_optimizer_step_with_such_a_row_is_one_of_all_experts() -> None:
    data = with_free(make_data(language_model(), **DATA), 2)
    data.serve(Serving(1, 3), by_length=False)
    there = data.presence(7, 7)
    expected = []
    for batch in islice(data.train_dataloader().batches, 7):
        tasks = {data.rows("train")[row].task for _, row in batch}
        expected.append([task in tasks or NO_TASK in tasks for task in range(3)])
    assert there.tolist() == expected
    assert any(
        NO_TASK in {data.rows("train")[row].task for _, row in batch} for batch in data.train_dataloader().batches
    )
    largest, _ = data.largest(2)
    assert len(largest.loads) == 3, "what is rehearsed when training begins has no such rows"


def test_stopped_at_any_moment_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.runs.make_data", lambda base, **changes: with_free(make_data(base, **changes)))
    run(tmp_path / "whole", *OVERRIDES, data=DATA)
    folder = stopped_and_resumed(tmp_path, *OVERRIDES, kills=[("after a batch", 10), ("before a batch", 17)], data=DATA)
    for file in ["router.safetensors", *(f"{name}/adapter_model.safetensors" for name in TASKS)]:
        assert (folder / "adapters" / file).read_bytes() == (tmp_path / "whole" / "adapters" / file).read_bytes(), file
    metrics = RunFolder(folder).read_metrics()
    monkeypatch.undo()
    run(tmp_path / "without", *OVERRIDES, data=DATA)
    assert metrics["train/tokens"] > RunFolder(tmp_path / "without").read_metrics()["train/tokens"]
    assert metrics["train/flops"] > RunFolder(tmp_path / "without").read_metrics()["train/flops"]


def test_a_method_that_goes_by_the_label_refuses_them() -> None:
    single = make_method("method=single_lora", names=TASKS)
    with pytest.raises(LorachainsError, match=r"5 training rows have no label, .* set data.unlabelled=false"):
        fit(single, "trainer.max_epochs=1", module=free_data(single.base))
    chain = make_method("method=chain_of_lora", NAMES)
    with pytest.raises(LorachainsError, match=r"5 training rows have no label"):
        chain.reads(free_data(chain.base))
    with pytest.raises(InstantiationException, match=r"method.unlabelled is 'label'"):
        moa("method.unlabelled=label")


def test_one_lora_for_all_rows_takes_them_as_others() -> None:
    mixed, data = make_method(), free_data(language_model())
    log = Log()
    fit(mixed, "trainer.max_epochs=1", module=data, logger=log)
    batch = next(iter(data.train_dataloader()))
    assert batch.adapters is None
    assert batch.candidates == 4
    assert sum(b.candidates for b in data.train_dataloader()) == 27 + 5
