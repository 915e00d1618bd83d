"""One LightningModule for each paper."""

from lorachains.methods.chain_of_lora import ChainOfLora
from lorachains.methods.classifier import Classifier
from lorachains.methods.cola import Cola
from lorachains.methods.continued import LoraContinued
from lorachains.methods.full import Full
from lorachains.methods.lora import Lora
from lorachains.methods.method import Method
from lorachains.methods.moa import Moa
from lorachains.methods.moe_lora import MoeLora
from lorachains.methods.selectors import SelectorFull, SelectorLora
from lorachains.methods.zero_shot import Icl, ZeroShot

__all__ = [
    "ChainOfLora", "Classifier", "Cola", "Full", "Icl", "Lora", "LoraContinued", "Method", "Moa", "MoeLora",
    "SelectorFull", "SelectorLora", "ZeroShot",
]  # fmt: skip
