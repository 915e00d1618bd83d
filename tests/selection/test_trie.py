"""Names scored through the trie against each one scored alone, by a table of probabilities and by a real model."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorachains.errors import LorachainsError
from lorachains.selection import NameTrie, probabilities, select
from tests.tiny import tiny_model

END = 2
NAMES = [[5, 6], [5, 6, 7], [5, 8], [9], [5, 6, 7, 8, 9]]


def alone(model: PreTrainedModel, prompt: list[int], name: list[int]) -> float:
    """The log-likelihood of one name, read by itself."""
    text = torch.tensor([[*prompt, *name, END]])
    logs = model(text).logits[0].log_softmax(-1)
    return sum(float(logs[place - 1, text[0, place]]) for place in range(len(prompt), text.shape[1]))


def through_one_pass(model: PreTrainedModel, prompt: list[int], trie: NameTrie) -> Tensor:
    """All nodes' log-probabilities from one pass over the prompt and the flattened trie."""
    start, nodes = len(prompt), len(trie.tokens)
    visible = torch.ones(start + nodes, start + nodes, dtype=torch.bool).tril()
    visible[start:, start:] = trie.mask
    bias = torch.zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, torch.finfo(model.dtype).min)
    positions = torch.cat([torch.arange(start), start + trie.positions])
    ids = torch.tensor([[*prompt, *trie.tokens]])
    logs = model(ids, attention_mask=bias[None, None], position_ids=positions[None]).logits[0].log_softmax(-1)
    before = torch.tensor([start + parent if parent >= 0 else start - 1 for parent in trie.parents])
    return logs[before, torch.tensor(trie.tokens)]


def test_one_pass_of_a_model_scores_all_names() -> None:
    model = tiny_model("llama", torch.float64).eval()
    trie, prompt = NameTrie(NAMES, END), [3, 11, 40, 7]
    with torch.no_grad():
        totals = trie.log_likelihoods(through_one_pass(model, prompt, trie))
        expected = [alone(model, prompt, name) for name in NAMES]
    torch.testing.assert_close(totals, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_scorer_sees_each_beginning_once() -> None:
    seen: list[list[int]] = []

    def scorer(texts: list[list[int]]) -> Tensor:
        seen.extend(texts)
        return torch.tensor([[math.log(text[-1] / 100 / len(text)) for text in texts]] * 2)

    trie = NameTrie(NAMES, END)
    totals = trie.score(scorer)
    beginnings = {(*name, END)[:n] for name in NAMES for n in range(1, len(name) + 2)}
    assert sorted(map(tuple, seen)) == sorted(beginnings)
    expected = [sum(math.log(t / 100 / n) for n, t in enumerate([*name, END], 1)) for name in NAMES]
    torch.testing.assert_close(totals, torch.tensor([expected] * 2))
    assert trie.lengths.tolist() == [len(name) + 1 for name in NAMES]


def test_probabilities_are_bayes_over_the_names() -> None:
    """A language of two tokens and an end: the probabilities are those of whole texts, given one of the names."""
    chance = {5: 0.5, 6: 0.2, END: 0.3}
    names = [list(name) for n in (1, 2) for name in product((5, 6), repeat=n)]
    trie = NameTrie(names, END)
    totals = trie.score(lambda texts: torch.tensor([math.log(chance[text[-1]]) for text in texts]))
    whole = torch.tensor([math.prod(chance[t] for t in [*name, END]) for name in names])
    torch.testing.assert_close(probabilities(totals), whole / whole.sum())
    means = torch.tensor([math.log(p) / (len(name) + 1) for p, name in zip(whole.tolist(), names, strict=True)])
    torch.testing.assert_close(probabilities(totals, trie.lengths), means.softmax(0))


def test_an_impossible_name_takes_no_other_along() -> None:
    trie = NameTrie([[5, 6], [5, 7]], END)
    totals = trie.score(lambda texts: torch.tensor([-math.inf if text[-1] == 7 else -1.0 for text in texts]))
    assert totals.tolist() == [-3.0, -math.inf]
    assert probabilities(totals).tolist() == [1.0, 0.0]


def test_the_likeliest_names() -> None:
    chances = torch.tensor([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]])
    first, second = select(chances, k=2, threshold=0.5)
    assert first.names == [1, 2]
    assert first.probabilities == pytest.approx([0.6, 0.3])
    assert first.sure
    assert second.names == [0, 2]
    assert not second.sure
    assert [len(row.names) for row in select(chances, k=7)] == [3, 3]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "no task names"),
        ([[5], []], r"task name 1 has the tokens \[\]"),
        ([[5, END]], "none of the end"),
        ([[5, 6], [7], [5, 6]], r"task name 2 has the tokens of another one, \[5, 6\]"),
    ],
)
def test_names_that_can_not_be_scored(names: list[list[int]], says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        NameTrie(names, END)


@pytest.mark.parametrize(("k", "threshold"), [(0, 0.5), (1, 1.5), (1, -0.1), (1, math.nan)])
def test_a_selection_that_can_not_be_made(k: int, threshold: float) -> None:
    with pytest.raises(LorachainsError, match=f"k={k}, threshold={threshold}"):
        select(torch.ones(1, 2), k, threshold)
