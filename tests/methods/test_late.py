"""Each step's number is handed out once, in order, so many optimizer steps later, whatever is saved in between."""

import pytest
import torch

from lorachains.methods.late import Late, Sent


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("stop_at", [None, 1, 2, 5])
def test_the_mean_of_a_step_arrives_late(batches: int, stop_at: int | None) -> None:
    """Asked before each batch, also between those of one step."""
    late, handed = Late(lag=2), dict[int, list[float]]()
    for step in range(8):
        for batch in range(batches):
            late.close(step)
            handed.setdefault(step, []).extend(late.arrived(step))
            late.note(torch.tensor(10.0 * (step + 1) + batch))
        if step + 1 == stop_at:  # saved when the step is done
            late.close(step + 1)
            again = Late(lag=2)
            again.load(late.state())
            late = again
    mean = (batches - 1) / 2
    assert handed == {step: [10.0 * (step - 2) + mean] if step > 2 else [] for step in range(8)}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_sent_is_what_it_was(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = torch.arange(3.0, device=device)
    sent = Sent(values.clone())
    assert sent.tolist() == [0.0, 1.0, 2.0]
