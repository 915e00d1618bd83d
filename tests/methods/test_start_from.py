"""A run that goes on from another's chain: those links stay, and all else is as in a run from the beginning."""

import json
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException

from lorachains.cli import settings_of
from lorachains.exported import Link
from lorachains.loading import attach_adapter
from lorachains.methods import Lora
from lorachains.peft_format import read_adapter
from lorachains.plateau import Watch
from lorachains.run_folder import RunFolder
from tests.adapters import inputs
from tests.jobs import job, trained
from tests.jobs import same as same_runs
from tests.methods.test_resume import stopped_and_resumed
from tests.runs import cola, fit, language_model, make_method, outcome, run, same, settings

LAST = "method.select=last"
CHAIN = ["method=cola", "knots=at_steps", "knots.steps=[5,12]", "knots.ranks=[8,4,2]", LAST]
"""Three links, of 5, 7 and 9 optimizer steps."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    run(folder, *CHAIN)
    return folder


def start(folder: Path, links: int | None = None) -> list[str]:
    return [f"start_from={folder}", *([] if links is None else [f"start_links={links}"])]


GOING_ON = {
    "lora": ["method=lora"],
    "cola": ["method=cola", "knots=at_steps", "knots.steps=[3,9]", "knots.ranks=[4,2,1]"],
    "merge": ["method=cola", "knots=at_steps", "knots.steps=[3,9]", "knots.mode=merge", "knots.init=first"],
}

OWN_LINKS = {
    "lora": [Link(8, None)],
    "cola": [Link(4, 3), Link(2, 9), Link(1, None)],
    "merge": [Link(8, 3), Link(8, 9), Link(8, None)],
}


@pytest.mark.parametrize("links", [0, 1, 2, None])
def test_it_begins_where_the_chain_was_right_after_the_knot(first: Path, links: int | None) -> None:
    method = make_method(*start(first, links))
    seen, whole = method.chain, read_adapter(first / "adapter")
    assert [link.knot for link in whole.links] == [5, 12, None]
    assert seen.ranks == [8, 4, 2][:links]
    assert seen.knots == [5, 12, -1][:links]
    assert seen.rank == 8
    merged, kept = language_model().model, sum(seen.ranks)
    for name, factors in whole.layers.items():
        merged.get_parameter(f"{name}.weight").data += whole.scale * factors.b[:, :kept] @ factors.a[:kept]
    x = inputs(2)
    assert (method.model.eval()(x).logits - merged.eval()(x).logits).abs().max() < 1e-4


@pytest.mark.parametrize("way", GOING_ON)
def test_the_links_taken_over_stay_and_those_of_its_own_follow(way: str, first: Path, tmp_path: Path) -> None:
    method = run(tmp_path, *GOING_ON[way], *start(first, 2), LAST)
    theirs, ours = read_adapter(first / "adapter"), read_adapter(tmp_path / "adapter")
    own = OWN_LINKS[way]
    assert ours.links == (Link(8, 5), Link(4, 12), *own)
    if way != "lora":
        told = [json.loads(line) for line in RunFolder(tmp_path).knots.read_text().splitlines()]
        steps = [method.trainer.global_step if link.knot is None else link.knot for link in own]
        assert [(row["link"], row["optimizer_step"]) for row in told] == list(enumerate(steps, 3))
    for name, factors in theirs.first(2).layers.items():
        kept = ours.first(2).layers[name]
        assert torch.equal(kept.a, factors.a)
        assert torch.allclose(kept.b * ours.scale, factors.b * theirs.scale, rtol=1e-6)
    assert ours.fingerprint == theirs.fingerprint
    attached = language_model()
    attach_adapter(attached, tmp_path / "adapter")
    x = inputs(2)
    assert (attached.model.eval()(x).logits - method.model.eval()(x).logits).abs().max() < 1e-4


def test_a_plateaus_knots_are_its_own(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "due", lambda self, step, total: step in (9, 15))
    method = cola(make_method("method=cola", "knots=plateau", *start(first, 2)))
    fit(method)
    assert (method.plan, method.chain.knots) == ([9, 15], [5, 12, 9, 15])


def test_nothing_taken_over_is_a_run_from_the_beginning(first: Path) -> None:
    bare, begun = (
        make_method("method=cola", "knots.links=2"),
        make_method("method=cola", "knots.links=2", *start(first, 0)),
    )
    for method in (bare, begun):
        fit(method)
    assert same(bare.state_dict(), begun.state_dict())


@pytest.mark.parametrize("way", GOING_ON)
def test_stopped_and_resumed_it_ends_the_same(way: str, first: Path, tmp_path: Path) -> None:
    overrides = [*GOING_ON[way], *start(first, 1)]
    run(tmp_path / "whole", *overrides)
    stopped_and_resumed(tmp_path / "stopped", *overrides, kills=[("before a batch", 3), ("after a batch", 11)])
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_side_by_side_as_alone(tmp_path: Path) -> None:
    trained([job(tmp_path / "first", *CHAIN, "trainer.max_epochs=2")])
    more = [*start(tmp_path / "first", 2), "method=cola", "knots.links=2", "trainer.max_epochs=1"]
    trained([job(tmp_path / "group" / str(seed), *more, f"seed={seed}") for seed in range(2)])
    trained([job(tmp_path / "alone", *more, "seed=1")])
    assert same_runs(tmp_path / "group" / "1", tmp_path / "alone", 1e-9)


def test_it_belongs_to_the_runs_settings(first: Path) -> None:
    assert settings_of(settings(*start(first, 1)))["start_links"] == 1
    assert settings_of(settings(*start(first, 1))) != settings_of(settings(*start(first, 2)))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["start_links=4"], "start_links is 4, but the chain has 3: choose 0…3"),
        (["start_links=many"], "links is 'many'"),
        (["adapter.target_modules=[q_proj]"], "layers that are none of the model's targets, as .*v_proj"),
        (
            ["adapter.target_modules=[q_proj,v_proj,k_proj]"],
            "has no .*k_proj: it is of another model",
        ),
    ],
)
def test_a_chain_that_does_not_fit(overrides: list[str], says: str, first: Path) -> None:
    with pytest.raises(InstantiationException, match=says):
        make_method(*start(first), *overrides)


def test_a_chain_of_another_base_or_none(first: Path, tmp_path: Path) -> None:
    with pytest.raises(InstantiationException, match=r"was trained on tiny-llama .*load it with its own base"):
        make_method(*start(first), base=language_model(seed=1))
    with pytest.raises(InstantiationException, match=r"start_from is .*: give the folder of a run or of an adapter"):
        make_method(*start(tmp_path))


def test_the_chain_of_the_end_is_kept_beside_that_of_an_earlier_best_epoch(tmp_path: Path) -> None:
    ended: list[dict[str, torch.Tensor]] = []
    scores = iter((2.0, 1.0, 0.0))

    def keep(self: Lora) -> None:
        ended.append({key: value.clone() for key, value in self.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lora, "on_train_end", keep, raising=False)
        patch.setattr("lorachains.callbacks.best.score_of", lambda summary: next(scores))
        best = run(tmp_path, *CHAIN[:-1]).best.best[0]
    assert best.step == 7
    files = RunFolder(tmp_path)
    assert len(read_adapter(files.adapter).links) == 1 + best.snapshot["links"]
    at_end = read_adapter(RunFolder(files.last).adapter)
    assert at_end.links == (Link(8, 5), Link(4, 12), Link(2, None))
    for name, factors in at_end.layers.items():
        assert torch.equal(factors.a[12:], ended[-1][f"{name}.lora_A"][0])
    assert make_method(*start(files.last, 2)).chain.ranks == [8, 4]
    run(tmp_path / "again", *CHAIN)
    assert not RunFolder(tmp_path / "again").last.exists()
