"""What is told of domains, against loops."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch

from lorachains.data.tasks import Example
from lorachains.data.tokens import Encoded, Serving, collate_eval
from lorachains.decisions import one_expert
from lorachains.domains import DomainLosses, Routes, perplexities
from lorachains.mixture_figures import draw_blocks, draw_heat_map
from tests.batches import texts_of

LABELS = [0, 2, 1, 0, 2]
LOGITS = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["vote", "argmax", "first"])
def test_accuracies_are_counts(mode: str) -> None:
    """In two parts, as of two batches."""
    routes = Routes(["a", "b", "c"], mode)
    routes.note(LABELS[:2], LOGITS[:, :2])
    routes.note(LABELS[2:], LOGITS[:, 2:])
    told = routes.metrics()
    right = [[int(LOGITS[b, t].argmax()) == LABELS[t] for t in range(5)] for b in range(3)]
    for block in range(3):
        assert told[f"router/block/{block}"] == pytest.approx(sum(right[block]) / 5)
    if mode == "argmax":
        assert told["router/accuracy"] == pytest.approx(sum(map(sum, right)) / 15)
    elif mode == "first":
        assert told["router/accuracy"] == told["router/block/0"]
    else:
        assert told["router/accuracy"] == told["router/voted"]
    sizes = {"a": 2, "b": 1, "c": 2}
    overall = sum(told[f"router/{name}/accuracy"] * size for name, size in sizes.items()) / 5
    assert told["router/accuracy"] == pytest.approx(overall)


def test_a_confusion_counts_what_was_decided() -> None:
    routes = Routes(["a", "b", "c"], "vote", voters=[2, 0])
    routes.note(LABELS, LOGITS)
    chosen = one_expert(LOGITS[[2, 0]], "vote").tolist()
    counts = routes.confusion().counts
    for label, expert in product(range(3), range(3)):
        assert counts[label, expert] == list(zip(LABELS, chosen, strict=True)).count((label, expert))
    assert routes.confusion().accuracy == pytest.approx(routes.metrics()["router/accuracy"])


def test_losses_are_those_of_gold_answers_by_token() -> None:
    texts = texts_of((9, 2), (5, 4), (8, 1), (7, 3))
    candidates = Example("b", "p", "x", "s", candidates=("y", "x"))
    free = Example("a", "p", "x", "s")
    rows = [Encoded(free, 0, [texts[0]]), Encoded(candidates, 1, texts[1:3]), Encoded(free, 0, [texts[3]])]
    found = DomainLosses(["a", "b", "c"])
    batch = collate_eval([(0, row) for row in rows], Serving(), pad=0)
    found.note("a", batch, torch.tensor([1.0, 9.0, 2.0, 3.0]))
    assert found.losses("a") == {"a": pytest.approx((2 * 1 + 3 * 3) / 5), "b": 2.0}
    assert found.metrics("a")["a/loss"] == pytest.approx((11 / 5 + 2) / 2)
    assert found.metrics("nobody") == {}


def test_perplexities_are_the_mean_and_the_geometric_mean() -> None:
    told = perplexities("routed", {"a": 1.0, "b": 3.0})
    assert told["routed/perplexity"] == pytest.approx((math.e + math.e**3) / 2)
    assert told["routed/perplexity_geometric"] == pytest.approx(math.e**2)
    assert told["routed/b/perplexity"] == pytest.approx(math.e**3)
    assert perplexities("routed", {"a": 1e6})["routed/a/perplexity"] == math.inf


def test_pictures_are_drawn(tmp_path: Path) -> None:
    draw_heat_map({"a": {"a": 1.0, "b": 2.0}, "b": {"a": 3.0, "b": 0.5}}, tmp_path / "map.png")
    draw_blocks([0.5, 1.0], 1.0, tmp_path / "blocks.png")
    for picture in ("map.png", "blocks.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
