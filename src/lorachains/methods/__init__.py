"""One LightningModule for each paper."""

from lorachains.methods.cola import Cola
from lorachains.methods.lora import Lora

__all__ = ["Cola", "Lora"]
