"""Adapters on disk: what PEFT wrote is read, and what is damaged is named."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.exported import Link
from lorachains.peft_format import read_adapter, read_config, write_adapter
from lorachains.transfer import load_adapter, save_adapter
from tests.adapters import config
from tests.tiny import tiny_model


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match=r"holds no adapter: adapter_config.json is missing"):
        read_config(tmp_path)
    chain = Chain(tiny_model("llama"), config("llama"))
    save_adapter(chain, tmp_path, "some/base", "0123")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LorachainsError, match=r"adapter_model.safetensors can't be read .* damaged"):
        load_adapter(chain, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": ')
    with pytest.raises(LorachainsError, match=r"adapter_config.json can't be read"):
        read_config(tmp_path)


def test_what_peft_wrote_is_one_link(tmp_path: Path) -> None:
    theirs = get_peft_model(tiny_model("gpt2"), config("gpt2", use_rslora=True, modules_to_save=["lm_head"]))
    theirs.save_pretrained(str(tmp_path))
    adapter = read_adapter(tmp_path)
    assert (adapter.links, adapter.fingerprint, adapter.scale) == ((Link(4, None),), None, 8 / 2)
    assert set(adapter.besides) == {"lm_head.weight"}
    with pytest.raises(LorachainsError, match=r"holds lm_head\.weight whole, which belongs to no link"):
        adapter.first(1)
    write_adapter(adapter, tmp_path / "again")
    again = read_adapter(tmp_path / "again")
    assert (again.rank, again.scale) == (4, 4)
    assert torch.equal(again.besides["lm_head.weight"], adapter.besides["lm_head.weight"])
    for name, factors in adapter.layers.items():
        assert torch.equal(again.layers[name].a, factors.a)
        assert torch.equal(again.layers[name].b, factors.b)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", r"links\.json can't be read"),
        ("{}", "links of other ranks than the adapter beside it, 4 in all"),
        ('[{"rank": 4}]', r"links\.json can't be read"),
        ('[{"rank": 3, "knot": 1}]', "links of other ranks"),
        ('[{"rank": "4", "knot": 1}]', r"links\.json can't be read \(a link of rank '4'"),
        ('[{"rank": 5, "knot": 1}, {"rank": -1, "knot": null}]', r"links\.json can't be read \(a link of rank -1"),
    ],
)
def test_links_that_do_not_fit(text: str, says: str, tmp_path: Path) -> None:
    save_adapter(Chain(tiny_model("llama"), config("llama")), tmp_path, "some/base", "0123")
    (tmp_path / "links.json").write_text(text)
    with pytest.raises(LorachainsError, match=says):
        read_adapter(tmp_path)


def test_what_a_bank_does_not_follow_is_refused(tmp_path: Path) -> None:
    get_peft_model(tiny_model("llama"), config("llama", use_dora=True)).save_pretrained(str(tmp_path))
    with pytest.raises(LorachainsError, match=r"adapter_config\.json: adapter\.use_dora is True"):
        read_adapter(tmp_path)
