"""One LightningModule for each paper."""

from lorachains.methods.cola import Cola
from lorachains.methods.lora import Lora
from lorachains.methods.method import Method

__all__ = ["Cola", "Lora", "Method"]
