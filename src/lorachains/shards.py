"""A chain merged into a model's folder of safetensors, file by file: only one of them is ever in memory."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lorachains.exported import ExportedChain
from lorachains.full_model import Merger
from lorachains.models import fingerprint_of


class Shards:
    """A model's folder of safetensors.

    Args:
        dtype: in which its weights are taken.
    """

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.folder, self.dtype = folder, dtype
        self.config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
        self._parameters = {name for name, _ in self.model.named_parameters()}
        self._files = _files(folder)
        self._keys = {self._name(key): key for key in self._files}

    def why_not(self, chain: ExportedChain) -> str | None:
        """What keeps a chain from being merged file by file; `None` if nothing does.

        Raises:
            LorachainsError: the chain is of other layers.
        """
        if shared := Merger(chain, self.model).shared:
            return f"{min(shared)} is tied to another weight"
        missing = self._parameters - self._keys.keys()
        return f"no safetensors in {self.folder} hold {min(missing)}" if missing else None

    def fingerprint(self) -> str:
        """What `models.fingerprint` gives for the model loaded."""
        return fingerprint_of((name, self._stored(self._keys[name])) for name in sorted(self._parameters))

    @torch.no_grad()
    def merge(self, chain: ExportedChain, output: Path) -> float:
        """Writes the merged model's folder, of as many files.

        Returns:
            The share of the updates that the weights' precision lost, `‖lost‖ / ‖ΔW‖`.
        """
        merger, size = Merger(chain, self.model), 0
        output.mkdir(parents=True, exist_ok=True)
        files = sorted(set(self._files.values()))
        for file in files:
            keys = [key for key, where in self._files.items() if where == file]
            tensors = {key: merger(self._name(key), self._read(key)).contiguous() for key in keys}
            save_file(tensors, output / file, metadata={"format": "pt"})
            size += sum(tensor.nbytes for tensor in tensors.values())
        if files != [SAFE_WEIGHTS_NAME]:
            index = {"metadata": {"total_size": size}, "weight_map": self._files}
            (output / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        self._write_settings(output)
        return merger.lost

    def _write_settings(self, output: Path) -> None:
        self.config.dtype = self.dtype
        self.config.save_pretrained(output)
        if (self.folder / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(self.folder).save_pretrained(output)
        AutoTokenizer.from_pretrained(self.folder).save_pretrained(output)

    def _name(self, key: str) -> str:
        """A parameter's name in the model; in the files some lack the model's prefix."""
        prefixed = f"{self.model.base_model_prefix}.{key}"
        return prefixed if prefixed in self._parameters else key

    def _stored(self, key: str) -> Tensor:
        with safe_open(self.folder / self._files[key], "pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def _read(self, key: str) -> Tensor:
        tensor = self._stored(key)
        return tensor.to(self.dtype) if self._name(key) in self._parameters else tensor


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor in a model's folder."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return dict(json.loads(index.read_text())["weight_map"])
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        return {}
    with safe_open(folder / SAFE_WEIGHTS_NAME, "pt") as file:
        return dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME)
