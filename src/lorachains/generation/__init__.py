"""Continuations of prompts, each by its own adapter: greedy, or sampled with a seed of its own."""

from lorachains.generation.generator import Generator
from lorachains.generation.sampling import Sampling

__all__ = ["Generator", "Sampling"]
