"""Chain-of-LoRA in one pass and one adapter after the other, and one task more: on both sides the same losses."""

import chains
import pytest

from lorachains.errors import LorachainsError


def test_one_pass_trains_what_one_after_the_other_does() -> None:
    found = chains.one_pass("tiny", tasks=2, rows=16, epochs=3)
    losses = found["losses"]
    assert losses["furthest apart"] < 1e-4
    assert losses["one pass"] == pytest.approx(losses["one after the other"], rel=1e-4)
    one, several = found["one pass"], found["one after the other"]
    assert several["tokens"] == one["tokens"]
    assert (several["steps"], one["steps"]) == (3 * 2, 2)
    assert found["one after the other / one pass"] == several["seconds"] / one["seconds"]


def test_a_task_more_leaves_the_experts_as_they_are() -> None:
    found = chains.add("tiny", tasks=2, rows=8, epochs=1)
    assert found["unchanged_files"] >= 2 * 2
    assert found["furthest perplexity of an expert apart"] < 1e-5
    assert 0 <= found["one task more"]["test/selector/top1"] <= 1


def test_tasks_that_are_not_there() -> None:
    with pytest.raises(LorachainsError, match="tasks=99, but there are 24"):
        chains.chain("tiny", 99, 8, None)
