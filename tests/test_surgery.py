"""Experts in and out of a mixture: all that is not meant stays bit for bit; a fitted row against scipy's."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.mixture import READS
from lorachains.mixture_format import ROUTER, About, attach_mixture, read_routers, save_routers
from lorachains.models import LanguageModel, fingerprint
from lorachains.surgery import PENALTY, fit_expert, fit_row, judged, prototype, put_in, table, take_out
from lorachains.transfer import save_adapter
from tests.adapters import config, randomise
from tests.mixtures import mixture_of
from tests.runs import language_model, make_data

NAMES = ["one", "two", "three"]


def base() -> LanguageModel:
    return language_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of three random experts, and a fourth expert beside it."""
    folder, model = tmp_path_factory.mktemp("saved"), base()
    name, known = model.name, fingerprint(model.model)
    chain = Chain(model.model, config("llama"), range(4))
    randomise(chain)
    for expert, of in enumerate(["mixture/one", "mixture/two", "mixture/three", "four"]):
        save_adapter(chain, folder / of, name, known, expert)
    weight = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    save_routers(folder / "mixture", About(NAMES, name, known, "mean_rms", "vote"), weight)
    return folder


def files(folder: Path, *names: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for name in names for p in (folder / name).iterdir()}


def test_an_expert_put_in_leaves_the_others(saved: Path, tmp_path: Path) -> None:
    """Their files byte for byte, and their rows of the routers bit for bit, also after the new row's fit."""
    put_in(saved / "mixture", "four", saved / "four", tmp_path / "more")
    data = make_data(base(), tasks=[*NAMES, "four"], train_size=6)
    data.setup()
    fit_expert(base(), tmp_path / "more", "four", data, rows=4)
    before, after = (load_file(folder / ROUTER)["weight"] for folder in (saved / "mixture", tmp_path / "more"))
    assert files(tmp_path / "more", *NAMES) == files(saved / "mixture", *NAMES)
    assert [*files(tmp_path / "more", "four").values()] == [*files(saved, "four").values()]
    assert torch.equal(after[:, :3], before)
    assert (after[:, 3] != 0).any()
    _, about = attach_mixture(base(), tmp_path / "more")
    assert about.names == [*NAMES, "four"]


def test_the_fitted_row_finds_its_domain(saved: Path, tmp_path: Path) -> None:
    """Texts of the stub's tasks begin with their names: before, none could be routed to the new one."""
    put_in(saved / "mixture", "four", saved / "four", tmp_path / "more")
    data = make_data(base(), tasks=[*NAMES, "four"], train_size=20)
    data.setup()
    before = judged(base(), saved / "mixture", data, "test")
    fit_expert(base(), tmp_path / "more", "four", data, rows=20)
    after = judged(base(), tmp_path / "more", data, "test")
    assert "router/four/accuracy" not in before
    assert after["router/four/accuracy"] == 1.0
    for name in NAMES:
        assert after[f"router/{name}/accuracy"] == before[f"router/{name}/accuracy"]
    assert "| router/four/accuracy |  | 1 |" in table(before, after)


def test_an_expert_taken_out_leaves_the_others(saved: Path, tmp_path: Path) -> None:
    take_out(saved / "mixture", "two", tmp_path / "less")
    about, weight = read_routers(tmp_path / "less")
    assert about.names == ["one", "three"]
    assert torch.equal(weight, load_file(saved / "mixture" / ROUTER)["weight"][:, [0, 2]])
    assert files(tmp_path / "less", "one", "three") == files(saved / "mixture", "one", "three")
    assert not (tmp_path / "less" / "two").exists()


def test_as_many_experts_decide_as_are_left(saved: Path, tmp_path: Path) -> None:
    about, weight = read_routers(saved / "mixture")
    shutil.copytree(saved / "mixture", tmp_path / "soft")
    save_routers(tmp_path / "soft", replace(about, decision="soft", top_k=3), weight)
    assert take_out(tmp_path / "soft", "two", tmp_path / "less").top_k == 2
    attach_mixture(base(), tmp_path / "less")


def test_an_expert_replaced_keeps_its_place(saved: Path, tmp_path: Path) -> None:
    put_in(saved / "mixture", "two", saved / "four", tmp_path / "other")
    assert (tmp_path / "other" / ROUTER).read_bytes() == (saved / "mixture" / ROUTER).read_bytes()
    assert files(tmp_path / "other", "one", "three") == files(saved / "mixture", "one", "three")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "other" / "two" / weights).read_bytes() == (saved / "four" / weights).read_bytes()


def test_the_fit_is_the_minimum() -> None:
    """Of the cross-entropy, each domain counting the same, plus the penalty: as scipy finds it from elsewhere."""
    generator = torch.Generator().manual_seed(1)
    weight, labels = torch.randn(3, 5, generator=generator).double(), torch.tensor([0] * 9 + [1] * 4 + [2] * 6)
    read = torch.randn(19, 5, generator=generator).double() + torch.eye(3, 5).double()[labels]
    start = weight[1].numpy()

    def loss(row: np.ndarray) -> float:
        total = 0.0
        for x, label in zip(read.numpy(), labels.tolist(), strict=True):
            logits = np.array([weight[0].numpy() @ x, row @ x, weight[2].numpy() @ x])
            total += (np.log(np.exp(logits).sum()) - logits[label]) / (3 * (labels == label).sum().item())
        return total + PENALTY * float(((row - start) ** 2).sum())

    expected = minimize(loss, np.zeros(5), tol=1e-10)
    ours = fit_row(weight, read, labels, 1)
    assert loss(ours.numpy()) <= expected.fun + 1e-7
    torch.testing.assert_close(ours, torch.tensor(expected.x), rtol=2e-3, atol=2e-3)


def test_the_prototype_sets_the_means_one_logit_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, labels = torch.randn(3, 5, generator=generator).double(), torch.tensor([0, 1, 2, 2, 1, 0])
    read = torch.randn(6, 5, generator=generator).double()
    more = prototype(weight, read, labels, 2) - weight[:2].mean(0)
    assert (read[labels == 2].mean(0) - read[labels != 2].mean(0)) @ more == pytest.approx(1.0)


def test_refusals(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match="is there already: give a folder that is not"):
        put_in(saved / "mixture", "four", saved / "four", tmp_path)
    with pytest.raises(LorachainsError, match="'five' can't be taken out of one, two, three"):
        take_out(saved / "mixture", "five", tmp_path / "less")
    with pytest.raises(LorachainsError, match="holds no mixture"):
        read_routers(saved / "four")
    for name in ("", "..", "../four", str(tmp_path / "four"), "mixture.json", "router"):
        with pytest.raises(LorachainsError, match="name: the task label is"):
            put_in(saved / "mixture", name, saved / "four", tmp_path / "new")
    small = Chain(language_model(dtype=torch.float64).model, config("llama", r=2), range(1))
    save_adapter(small, tmp_path / "small", "tiny-llama", fingerprint(base().model), 0)
    with pytest.raises(LorachainsError, match=r"has rank 2, the mixture's experts have 4: train it with adapter.r=4"):
        put_in(saved / "mixture", "five", tmp_path / "small", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    about, weight = read_routers(saved / "mixture")
    shutil.copytree(saved / "mixture", tmp_path / "other")
    save_routers(tmp_path / "other", replace(about, base_fingerprint="00"), weight)
    with pytest.raises(LorachainsError, match=r"the routers in .* were trained on tiny-llama .weights 00."):
        attach_mixture(base(), tmp_path / "other")
    data = make_data(base(), tasks=["one", "two"])
    data.setup()
    put_in(saved / "mixture", "four", saved / "four", tmp_path / "more")
    with pytest.raises(LorachainsError, match=r"there are no rows of four, three: give data.tasks"):
        fit_expert(base(), tmp_path / "more", "four", data, rows=4)
    with pytest.raises(LorachainsError, match="was trained on tiny-llama"):
        attach_mixture(language_model("llama", torch.float64, hidden_size=16), saved / "mixture")


def test_damaged_files(saved: Path, tmp_path: Path) -> None:
    take_out(saved / "mixture", "two", tmp_path / "less")
    about, weight = read_routers(tmp_path / "less")
    save_routers(tmp_path / "less", about, weight[:, :1])
    with pytest.raises(LorachainsError, match="not one row for each of"):
        read_routers(tmp_path / "less")
    (tmp_path / "less" / ROUTER).write_bytes(b"nothing")
    with pytest.raises(LorachainsError, match=r"can't be read .* it is damaged"):
        read_routers(tmp_path / "less")


@pytest.mark.parametrize("reads", READS)
def test_a_saved_mixture_is_the_one_that_was_saved(reads: str, tmp_path: Path) -> None:
    mixture = mixture_of("llama", reads=reads)
    known = fingerprint(mixture.model)
    for expert, name in enumerate(NAMES):
        save_adapter(mixture.chain, tmp_path / name, "tiny-llama", known, expert)
    save_routers(tmp_path, About(NAMES, "tiny-llama", known, "mean_rms", "vote", reads=reads), mixture.routers.weight)
    twin = mixture_of("llama")  # of which only the base counts
    for bank_name, bank in twin.chain.banks.items():
        parent, _, child = bank_name.rpartition(".")
        setattr(twin.model.get_submodule(parent), child, bank.base_layer)
    loaded, about = attach_mixture(LanguageModel(twin.model, base().tokenizer, "tiny-llama"), tmp_path)
    prompts = [[5, 6, 7], [9] * 20, [11]]
    torch.testing.assert_close(loaded.logits(prompts), mixture.logits(prompts))
    assert about.names == NAMES
