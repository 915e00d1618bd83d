"""Merged file by file, a model is the one that is merged in memory."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorachains import shards
from lorachains.full_model import merge_in_memory
from lorachains.models import byte_tokenizer, fingerprint
from lorachains.shards import Shards
from lorachains.transfer import export
from tests.adapters import ARCH_AND_FIELDS, inputs
from tests.test_full_model import base, chain_of
from tests.tiny import tiny_model


def folder_of(model: Any, folder: Path, size: str = "20KB") -> Path:
    model.save_pretrained(folder, max_shard_size=size)
    byte_tokenizer().save_pretrained(folder)
    return folder


def same_tensors(ours: Path, theirs: Path) -> bool:
    a, b = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict() for folder in (ours, theirs))
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("size", ["20KB", "1GB"], ids=["several files", "one file"])
@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
def test_as_in_memory(arch: str, fields: dict[str, Any], size: str, tmp_path: Path) -> None:
    model = tiny_model(arch, torch.bfloat16)
    source = folder_of(model, tmp_path / "base", size)
    chain = chain_of(copy.deepcopy(model), arch, **fields)
    exported = export(chain, "some/base", "0123")
    pieces = Shards(source, torch.bfloat16)
    assert pieces.fingerprint() == fingerprint(model)
    assert pieces.why_not(exported) is None
    lost = pieces.merge(exported, tmp_path / "ours")
    assert lost == pytest.approx(merge_in_memory(exported, base(model), tmp_path / "theirs"), rel=1e-9)
    assert same_tensors(tmp_path / "ours", tmp_path / "theirs")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names >= {path.name for path in source.iterdir()}
    assert (len(list(source.glob("*.safetensors"))) > 1) == (size == "20KB")


def test_one_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the next file is read before those of the last are written."""
    exported = export(chain_of(tiny_model("llama"), "llama"), "some/base", "0123")
    pieces, events = Shards(folder_of(tiny_model("llama"), tmp_path / "base"), torch.float32), list[str]()

    def opening(path: Path, framework: str) -> Any:
        events.append(f"read {path.name}")
        return safe_open(path, framework)

    def saving(tensors: Any, path: Path, **rest: Any) -> None:
        events.append(f"write {path.name}")
        save_file(tensors, path, **rest)

    monkeypatch.setattr(shards, "safe_open", opening)
    monkeypatch.setattr(shards, "save_file", saving)
    pieces.merge(exported, tmp_path / "ours")
    order = list(dict.fromkeys(events))
    files = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert order == [event for file in files for event in (f"read {file}", f"write {file}")]


def test_files_without_the_models_prefix_and_in_another_precision(tmp_path: Path) -> None:
    """As Bloom's and GPT-2's on the hub are named; buffers of older files stay as they are."""
    model, x = tiny_model("bloom"), inputs(2)
    source = folder_of(model, tmp_path / "base", "1GB")
    tensors = load_file(source / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(renamed | {"h.0.mask": torch.ones(3, dtype=torch.bool)}, source / "model.safetensors", {"format": "pt"})
    exported = export(chain_of(tiny_model("bloom", torch.bfloat16), "bloom"), "some/base", "0123")
    pieces = Shards(source, torch.bfloat16)
    assert pieces.fingerprint() == fingerprint(tiny_model("bloom", torch.bfloat16))
    pieces.merge(exported, tmp_path / "ours")
    merge_in_memory(exported, base(tiny_model("bloom", torch.bfloat16)), tmp_path / "theirs")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / way, dtype="auto") for way in ("ours", "theirs"))
    assert torch.equal(ours(x).logits, theirs(x).logits)
    assert load_file(tmp_path / "ours" / "model.safetensors")["h.0.mask"].all()
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_merged_file_by_file(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    pieces = Shards(folder_of(model, tmp_path / "tied"), torch.float32)
    tied = export(chain_of(model, "llama", target_modules=["lm_head"]), "some/base", "0123")
    assert pieces.why_not(tied) == "lm_head.weight is tied to another weight"
    exported = export(chain_of(tiny_model("llama"), "llama"), "some/base", "0123")
    (tmp_path / "tied" / "model.safetensors.index.json").unlink()
    assert "no safetensors in" in str(Shards(tmp_path / "tied", torch.float32).why_not(exported))
