"""Where texts begin, of which an adapter may serve the last part alone, and where the caller ends them."""

from collections.abc import Callable, Sequence

from lorachains.generation.lane import Lane
from lorachains.prefill import Prefill


class Parts:
    """Prompts, of which the base reads the first parts alone.

    Args:
        starts: how long they are; `None` if there are none.
        prefill: what was read of them, if it was.

    Attributes:
        rests: what is read by the adapters, one token at least.
        width: columns of all.
    """

    def __init__(self, prompts: list[Sequence[int]], starts: Sequence[int] | None, prefill: Prefill | None):
        self.prefill = prefill
        self.lengths = _begins(prompts, starts)
        self.firsts = [prompt[:length] for prompt, length in zip(prompts, self.lengths, strict=True)]
        self.rests = [prompt[length:] for prompt, length in zip(prompts, self.lengths, strict=True)]
        self.width = max(self.lengths) + max(map(len, self.rests))

    def read_first(self, lane: Lane, pad: int) -> None:
        """Has the lane read the first parts."""
        if self.prefill is not None:
            lane.take(self.prefill, self.lengths)
        elif any(self.lengths):
            lane.read(self.firsts, pad)


def alike(prompts: Sequence[Sequence[int]], starts: Sequence[int] | None) -> list[list[int]]:
    """The rows whose parts that the adapters read are of one length, which are all rows of most batches.

    Of others some would have empty columns between their two parts, and a sliding window counts columns.
    """
    if starts is None:
        return [list(range(len(prompts)))]
    found: dict[int, list[int]] = {}
    for row, (prompt, begin) in enumerate(zip(prompts, _begins(prompts, starts), strict=True)):
        found.setdefault(len(prompt) - begin, []).append(row)
    return list(found.values())


def _begins(prompts: Sequence[Sequence[int]], starts: Sequence[int] | None) -> list[int]:
    """How much the base alone reads: the last token is the adapter's, since it predicts the first new one."""
    return [min(start, len(p) - 1) for start, p in zip(starts or [0] * len(prompts), prompts, strict=True)]


class Ends:
    """Where texts end because the caller says so.

    Args:
        order: each row's prompt.

    Attributes:
        at: the number of new tokens of each row that has ended.
    """

    def __init__(self, order: Sequence[int], until: Callable[[int, int], bool]):
        self.order, self.until = order, until
        self.at: dict[int, int] = {}
        self._taken = 0

    def reached(self, lane: Lane) -> bool:
        """Shows the newest tokens of the rows that go on; whether none does any more."""
        self._taken += 1
        ended: list[bool] = lane.done.tolist()
        for row, token in enumerate(lane.token.flatten().tolist()):
            if row not in self.at and (self.until(self.order[row], token) or ended[row]):
                self.at[row] = self._taken
        return len(self.at) == len(self.order)
