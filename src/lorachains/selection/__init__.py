"""Which task an instruction asks for: its name found in generated text, or all names scored exactly."""

from lorachains.selection.kmp import Automaton, Found, Names
from lorachains.selection.stream import Match, StreamMatcher
from lorachains.selection.trie import NameTrie, Scorer, Selected, probabilities, select

__all__ = [
    "Automaton", "Found", "Match", "NameTrie", "Names", "Scorer", "Selected", "StreamMatcher", "probabilities",
    "select",
]  # fmt: skip
