"""Tied links in the base weights (COLA Algorithm 1, line 6), and the way back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorachains.bank import LoraBank
from lorachains.errors import LorachainsError
from lorachains.models.quantization import dequantized, is_quantized, requantize, stored
from lorachains.sharding import local, over_parts, rows


class Merges:
    """Adds ledger links to the weights under a model's banks.

    Args:
        banks: the model's, by layer name.
    """

    def __init__(self, model: PreTrainedModel, banks: Mapping[str, LoraBank]):
        self.model, self.banks = model, banks
        self._original: dict[str, list[Tensor]] = {}

    def check(self, experts: int, requantize: bool) -> None:
        """Raises a LorachainsError that says why links can't be merged into this base, if they can't.

        Args:
            requantize: whether quantised weights may be quantised anew.
        """
        remedy = "use knots.mode=ledger"
        if experts > 1:
            raise LorachainsError(f"knots.mode=merge with {experts} adapters, which share one base weight: {remedy}")
        owners: dict[int, int] = {}
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for name, bank in self.banks.items():
            why = why_not_mergeable(bank, requantize)
            if why is None and owners[id(bank.base_layer.weight)] > 1:
                why = "its weight is shared with another layer"
            if why:
                raise LorachainsError(f"knots.mode=merge can't merge into {name}: {why}: {remedy}")
        if requantize and not any(is_quantized(bank.base_layer) for bank in self.banks.values()):
            raise LorachainsError("knots.requantize is true, but no weight is quantised: set it to false")

    def add(self, link: int, ranks: Sequence[int]) -> float:
        """Merges one link of the ledger, whose links have these ranks.

        Returns:
            The share of the link's update that the base's precision lost, `‖lost‖ / ‖ΔW‖`.
        """
        start = sum(ranks[:link])
        lost, update = 0.0, 0.0
        for bank in self.banks.values():
            bank.merged = True
            bank_lost, bank_update = merge(bank, link, slice(start, start + ranks[link]))
            lost, update = lost + bank_lost, update + bank_update
        lost, update = over_parts(self.model, lost, update)
        return (lost / update) ** 0.5 if update else 0.0

    def keep_original(self) -> None:
        """Copies the targeted weights to the host once, for an exact way back: a merge can't be subtracted again."""
        if not self._original:
            self._original = {n: [t.detach().cpu().clone() for t in _parts(bank)] for n, bank in self.banks.items()}

    @torch.no_grad()
    def restore_original(self) -> None:
        """Takes all links out of the weights again."""
        for name, tensors in self._original.items():
            for part, tensor in zip(_parts(self.banks[name]), tensors, strict=True):
                part.copy_(tensor)
            self.banks[name].merged = False


def why_not_mergeable(bank: LoraBank, anew: bool = False) -> str | None:
    """What keeps a link from being merged into a layer's weight; `None` if nothing does.

    Args:
        anew: whether a quantised weight may be quantised anew.
    """
    layer = bank.base_layer
    if is_quantized(layer):
        again = "knots.requantize=true quantises it anew, at a loss"
        if not anew:
            return f"a {type(layer).__name__} has no floating-point weight to merge into ({again})"
    elif not isinstance(layer, nn.Linear | Conv1D) or not layer.weight.is_floating_point():
        return f"a {type(layer).__name__} has no floating-point weight to merge into"
    if bank.lora_bias is not None and layer.bias is None:
        return "adapter.lora_bias needs a bias in the base layer to merge into"
    return None


@torch.no_grad()
def merge(bank: LoraBank, link: int, ranks: slice) -> tuple[float, float]:
    """Adds one tied link of the only adapter to the base weight, `W ← W + s B A`.

    The product and the sum are taken in the adapter's precision and rounded once to the base's. A quantised weight
    is quantised anew.

    Args:
        ranks: the link's, in the ledger.

    Returns:
        The squared Frobenius norms of what the rounding lost, and of the update; of this device's rows of a weight
        that is divided.
    """
    layer = bank.base_layer
    quantised = is_quantized(layer)
    part = slice(None) if quantised else rows(layer.weight)
    a, b = bank.ledger_A[0, ranks], bank.ledger_B[0, :, ranks] * bank.ledger_scale[0, ranks]
    update = a.mT[part] @ b.mT if isinstance(layer, Conv1D) else b[part] @ a
    exact = _weight(layer).to(update.dtype) + update
    if quantised:
        requantize(layer, exact)
    else:
        _weight(layer).copy_(exact)
    if bank.ledger_bias is not None:
        bias = local(layer.bias)
        bias.copy_(bias.to(update.dtype) + bank.ledger_bias[0, link, rows(layer.bias)])
    return float((exact - _weight(layer)).square().sum()), float(update.square().sum())


def _weight(layer: Any) -> Tensor:
    """A base's weight, or this device's rows of one that is divided; a copy of a quantised one."""
    return dequantized(layer) if is_quantized(layer) else local(layer.weight)


def _parts(bank: LoraBank) -> list[Tensor]:
    """All that a merge changes, in place."""
    layer = bank.base_layer
    weight = stored(layer) if is_quantized(layer) else [local(layer.weight)]
    return weight if bank.lora_bias is None else [*weight, local(layer.bias)]
