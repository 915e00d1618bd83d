"""The best epoch is the first one that nothing beats, by the criterion asked for."""

from typing import Any

import pytest
import torch

from lorachains.callbacks.best import BestEpoch
from lorachains.errors import LorachainsError
from lorachains.methods import Lora
from tests.runs import fit, make_method

SCORES = [0.25, 0.75, 0.75, 0.5]
LOSSES = [4.0, 3.0, 2.0, 2.0]


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation scores and losses of four epochs."""

    def summaries(self: Lora, split: str) -> list[dict[str, float]]:
        epoch = self.trainer.current_epoch
        return [{"accuracy": SCORES[epoch], "loss": LOSSES[epoch]}]

    monkeypatch.setattr(Lora, "adapter_summaries", summaries)


@pytest.mark.usefixtures("rigged")
@pytest.mark.parametrize(("select", "epoch"), [("metric", 3), ("loss", 3), ("last", 4)])
def test_the_lower_loss_and_then_the_first_of_equals_wins(select: str, epoch: int) -> None:
    method = make_method(f"method.select={select}")
    fit(method, "trainer.max_epochs=4")
    [best] = method.best.best
    assert best.step == 7 * epoch
    assert best.summary == {"accuracy": SCORES[epoch - 1], "loss": LOSSES[epoch - 1]}
    assert method.best.validated == 28


@pytest.mark.usefixtures("rigged")
def test_a_sanity_check_is_no_epoch() -> None:
    method = make_method()
    fit(method, "trainer.max_epochs=1", "trainer.num_sanity_val_steps=2")
    assert [best.step for best in method.best.best] == [7]


def test_state_survives_a_checkpoint_that_is_read_without_code(tmp_path: Any) -> None:
    method = make_method()
    fit(method)
    torch.save(method.best.state_dict(), tmp_path / "best")
    again = BestEpoch()
    again.load_state_dict(torch.load(tmp_path / "best", weights_only=True))
    assert str(again.best) == str(method.best.best)
    assert again.validated == 21


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(LorachainsError, match=r"method.select is 'f1': choose metric, loss or last"):
        BestEpoch("f1")
