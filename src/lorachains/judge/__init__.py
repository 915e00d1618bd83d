"""A large language model rates answers: `python -m lorachains.judge` (Chain-of-LoRA §II-C, MoA Tab. 6)."""

from lorachains.judge.cache import ReplyCache
from lorachains.judge.endpoint import Endpoint
from lorachains.judge.local import LocalModel
from lorachains.judge.rating import Judge, Rating, Reply, rate, summarise
from lorachains.judge.scales import SCALES, Scale

__all__ = ["SCALES", "Endpoint", "Judge", "LocalModel", "Rating", "Reply", "ReplyCache", "Scale", "rate", "summarise"]
