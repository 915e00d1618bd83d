"""A chain merged into its base for good: a full model on disk, as `save_pretrained` writes it.

`W + ΔW` is computed in float32 (float64 over a float64 base) and rounded once to the weights' precision.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorachains.bank import linear_shape
from lorachains.errors import LorachainsError
from lorachains.exported import ExportedChain
from lorachains.models import LanguageModel
from lorachains.models.quantization import is_quantized


class Merger:
    """What a chain makes of a model's parameters, one at a time.

    Args:
        model: says what the parameters are; they may be on the meta device.

    Attributes:
        changed: the names of the parameters that it changes.

    Raises:
        LorachainsError: the chain is of other layers.
    """

    def __init__(self, chain: ExportedChain, model: PreTrainedModel):
        self.chain, self.model = chain, model
        self._lost = self._update = 0.0
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.changed = set(chain.besides)
        for name, factors in chain.layers.items():
            self.changed |= {f"{name}.weight"} | ({f"{name}.bias"} if factors.bias is not None else set())
        if unknown := self.changed - parameters.keys():
            raise LorachainsError(f"the adapter changes {min(unknown)}, which the model lacks: give it its own base")
        for name, factors in chain.layers.items():
            if (shape := linear_shape(model.get_submodule(name))) != (factors.a.shape[1], factors.b.shape[0]):
                raise LorachainsError(f"the adapter's {name} is of another shape than {shape}: give it its own base")

    def __call__(self, name: str, given: Tensor) -> Tensor:
        """A parameter as the chain leaves it, in the precision given."""
        if name in self.chain.besides:
            return self.chain.besides[name].to(given.dtype)
        if name not in self.changed:
            return given
        layer, _, kind = name.rpartition(".")
        update = self._of(layer, kind).to(torch.promote_types(given.dtype, torch.float32))
        exact = given.to(update.dtype) + update
        merged = exact.to(given.dtype)
        if kind == "weight":
            self._lost += float((exact - merged).double().square().sum())
            self._update += float(update.double().square().sum())
        return merged

    @property
    def lost(self) -> float:
        """The share of all updates so far that the rounding lost, `‖lost‖ / ‖ΔW‖`."""
        return (self._lost / self._update) ** 0.5 if self._update else 0.0

    @property
    def shared(self) -> set[str]:
        """Names of the changed parameters that another module of the model uses as well."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return {name for several in names.values() if len(several) > 1 for name in several} & self.changed

    def _of(self, layer: str, kind: str) -> Tensor:
        factors, scale = self.chain.layers[layer], self.chain.scale
        if kind == "bias" and factors.bias is not None:
            return scale * factors.bias.sum(0)
        update = (scale * factors.b) @ factors.a
        return update.mT if isinstance(self.model.get_submodule(layer), Conv1D) else update


@torch.no_grad()
def merge_in_memory(chain: ExportedChain, base: LanguageModel, output: Path) -> float:
    """Merges into a model at hand, which is changed, and writes it. A quantised one is dequantised first.

    A changed weight that is tied to another (an output layer to the embeddings) gets a copy of its own.

    Returns:
        The share of the updates that the weights' precision lost, `‖lost‖ / ‖ΔW‖`.

    Raises:
        LorachainsError: the chain is of other layers, or the weights can't be dequantised to the same model.
    """
    model = _dequantised(base.model)
    merger = Merger(chain, model)
    for name in merger.shared:
        layer, _, kind = name.rpartition(".")
        setattr(model.get_submodule(layer), kind, nn.Parameter(model.get_parameter(name).clone()))
        model.config.tie_word_embeddings = False
    for name, parameter in model.named_parameters():
        parameter.copy_(merger(name, parameter))
    model.config.use_cache = True  # training has switched it off
    model.save_pretrained(output)
    base.tokenizer.save_pretrained(output)
    return merger.lost


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    layers = [layer for layer in model.modules() if is_quantized(layer)]
    if any(getattr(layer, "source_cls", None) is Conv1D for layer in layers):
        raise LorachainsError(
            f"a quantised {type(model).__name__} can't be merged into: its layers are Conv1D, and transformers would "
            "dequantise them to others; set model.quantization=null"
        )
    return model.dequantize(dtype=model.dtype) if layers else model
