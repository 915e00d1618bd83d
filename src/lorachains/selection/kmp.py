"""The name of a task in a text, found character by character (Chain-of-LoRA, IEEE SPL 2024, §III-B.2).

The paper matches names with the Knuth–Morris–Pratt algorithm and says no more. Here each name has its automaton, and
all are run side by side. What the paper leaves open is settled so: of all names in a text the one that begins first
counts, and of those that begin there the longest. A name that is complete is therefore kept back as long as a longer
one around it can still come.

The text decides alone: a name that is quoted, or negated, counts like any other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lorachains.errors import LorachainsError

Spaces = Literal["collapse", "drop", "keep"]


class Automaton:
    """The Knuth–Morris–Pratt automaton of one pattern. Its state is how many characters of the pattern are matched.

    Args:
        pattern: not empty.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.border = [0]  # of each beginning: its longest proper prefix that is also its suffix
        for character in pattern[1:]:
            self.border.append(self._extend(self.border[-1], character))

    def step(self, state: int, character: str) -> int:
        """The state after one more character. `len(pattern)` says that the pattern ends here."""
        return self._extend(self.border[-1] if state == len(self.pattern) else state, character)

    def _extend(self, state: int, character: str) -> int:
        while state and self.pattern[state] != character:
            state = self.border[state - 1]
        return state + (self.pattern[state] == character)


@dataclass(frozen=True)
class Found:
    """A name in a text, which it ends after `end` characters of the text as it came."""

    name: str
    end: int


class Names:
    """What a set of task names looks like in a text.

    Args:
        names: of the tasks.
        ignore_case: whether "ner" stands for "NER"; then it does in "owner" too.
        spaces: whether a run of white space counts as one space, as nothing, or as it is.

    Raises:
        LorachainsError: there is no name, one is empty, or two are the same under these rules.
    """

    def __init__(self, names: Sequence[str], *, ignore_case: bool = False, spaces: Spaces = "collapse") -> None:
        if spaces not in get_args(Spaces):
            raise LorachainsError(f"spaces is {spaces!r}: choose {', '.join(get_args(Spaces))}")
        self.ignore_case, self.spaces = ignore_case, spaces
        self.automata: dict[str, Automaton] = {}
        seen: dict[str, str] = {}
        for name in names:
            pattern = "".join(self.fold(name.strip()))
            if not pattern:
                raise LorachainsError(f"a task's name is {name!r}: give it at least one character")
            if pattern in seen:
                raise LorachainsError(f"the names {seen[pattern]!r} and {name!r} are the same to a reader: rename one")
            seen[pattern] = name
            self.automata[name] = Automaton(pattern)
        if not seen:
            raise LorachainsError("there are no task names to look for: give at least one")

    def fold(self, text: Iterable[str], spaced: bool = False) -> Iterator[str]:
        """What each character counts as: none, one, or several.

        Args:
            spaced: whether the text goes on after white space.
        """
        for character in text:
            space = character.isspace()
            if not space or self.spaces == "keep":
                yield character.casefold() if self.ignore_case else character
            else:
                yield "" if spaced or self.spaces == "drop" else " "
            spaced = space

    def find(self, text: str) -> Found | None:
        """The name in a whole text; `None` if there is none."""
        search = Search(self)
        return search.read(text) or search.finish()


class Search:
    """The search for a name in a text that comes in pieces."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._states = dict.fromkeys(names.automata, 0)
        self._spaced = False
        self._characters = 0  # read, of the text as it came
        self._place = 0  # and of what it counts as
        self._best: tuple[int, Found] | None = None  # where it began

    def read(self, text: str) -> Found | None:
        """The name, as soon as no character to come can change it; `None` as long as one can. Read no more after it."""
        for character in text:
            self._characters += 1
            for counted in next(self.names.fold(character, self._spaced)):
                self._advance(counted)
                if self._best and not self._awaits(self._best[0]):
                    return self._best[1]
            self._spaced = character.isspace()
        return None

    def finish(self) -> Found | None:
        """The name that stands complete where the text ends; `None` if there is none."""
        return self._best and self._best[1]

    def _advance(self, character: str) -> None:
        self._place += 1
        for name, automaton in self.names.automata.items():
            state = self._states[name] = automaton.step(self._states[name], character)
            start = self._place - state
            if state == len(automaton.pattern) and (self._best is None or start <= self._best[0]):
                self._best = (start, Found(name, self._characters))

    def _awaits(self, start: int) -> bool:
        """Whether an incomplete name began no later than the best one."""
        return any(
            0 < state < len(self.names.automata[name].pattern) and self._place - state <= start
            for name, state in self._states.items()
        )
