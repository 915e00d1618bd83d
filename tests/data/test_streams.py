from itertools import pairwise

import pytest

from lorachains.data.streams import turns


@pytest.mark.parametrize("lengths", [[7], [7, 3], [1, 10, 4], [5, 5], [13, 12, 1, 7]])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_turns_keep_each_streams_own_steps(lengths: list[int], accumulate: int) -> None:
    found = turns(lengths, accumulate)
    steps = [found[start : start + accumulate] for start in range(0, len(found), accumulate)]
    assert all(found)  # no batch is empty
    assert len(steps) == -(-max(lengths) // accumulate)
    for stream, length in enumerate(lengths):
        of_steps = [sum(stream in turn for turn in step) for step in steps]
        alone = [accumulate] * (length // accumulate) + [length % accumulate] * (length % accumulate > 0)
        assert [count for count in of_steps if count] == alone
        assert all(stream in step[-1] for step, count in zip(steps, of_steps, strict=True) if count)
        gaps = [i for i, count in enumerate(of_steps) if count]
        assert gaps[-1] == len(steps) - 1
        distances = [b - a for a, b in pairwise([-1, *gaps])]
        assert max(distances) - min(distances) <= 1  # evenly spread
