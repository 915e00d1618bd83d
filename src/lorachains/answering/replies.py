"""What a chain says of an instruction: the tasks that it selects, and the replies of their experts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorachains.errors import LorachainsError


@dataclass(frozen=True)
class Route:
    """What the routers of a mixture say of a text.

    Attributes:
        decision: how experts follow from that, see `decisions`.
        voted: the majority's expert.
        blocks: each block's own choice.
        probabilities: of each expert, their mean over the blocks that vote.
    """

    decision: str
    voted: str
    blocks: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """The tasks selected for an instruction.

    Attributes:
        adapter: who answers: a task, or "base"; "mixture" where all experts of one answer together.
        tasks: the likeliest first; none where no name was generated.
        probabilities: of these tasks; none in the generate mode.
        seconds: that selecting took for its batch.
        route: of a mixture, how it was chosen.
    """

    adapter: str
    tasks: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    seconds: float = 0.0
    route: Route | None = None


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        adapter: whose.
        tokens: new ones, with the one that ended the text.
        likelihood: the log-likelihood of the new tokens under that adapter, in nats; `None` where there was nothing to
            choose from.
        seconds: that generating took for its batch.
    """

    adapter: str
    text: str
    tokens: int
    seconds: float
    likelihood: float | None = None


@dataclass(frozen=True)
class Answered:
    """An instruction's answer. `replies` holds those of all candidates, the best first."""

    choice: Choice
    replies: tuple[Reply, ...]


def check_texts(texts: object) -> None:
    """Raises `LorachainsError` where they are no list of instructions, but one, say."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise LorachainsError(f"{texts!r:.60} is no list of instructions: give one, as ['…', '…']")


def answering(choice: Choice, k: int) -> tuple[str, ...]:
    """Who answers: the selected tasks, or the fallback where none is to be trusted."""
    return choice.tasks[:k] if choice.tasks[:1] == (choice.adapter,) else (choice.adapter,)


def best_first(choice: Choice, replies: Sequence[Reply]) -> tuple[Reply, ...]:
    """The replies, the one first that is likeliest together with its task."""
    known = dict(zip(choice.tasks, choice.probabilities, strict=False))

    def together(reply: Reply) -> float:
        return math.log(max(known.get(reply.adapter, 1.0), 1e-300)) + (reply.likelihood or 0.0)

    return tuple(sorted(replies, key=together, reverse=True))
