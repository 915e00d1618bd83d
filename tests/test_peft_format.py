"""What is saved is PEFT's: its library reads the whole chain as one adapter, and so do we."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.peft_format import check_base, load_adapter, read_config, save_adapter
from lorachains.routing import HardRoute
from tests.adapters import ARCH_AND_FIELDS, config, inputs, randomise
from tests.tiny import tiny_model


@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
def test_the_whole_chain_is_one_peft_adapter(arch: str, fields: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model(arch, torch.float64).eval()
    chain = Chain(copy.deepcopy(base), config(arch, **fields))
    for link, rank in enumerate((2, 3), 1):
        randomise(chain, link)
        chain.tie(link)
        chain.extend(rank)  # alpha constant: every link has a scaling of its own
    randomise(chain, 9)
    save_adapter(chain, tmp_path, "some/base", "0123")
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).double()
    x = inputs(3)
    assert (loaded(x).logits - chain.model(x).logits).abs().max() < 1e-6  # the file is float32
    saved = read_config(tmp_path)
    assert saved.r == 4 + 2 + 3
    assert saved.base_model_name_or_path == "some/base"


def test_plain_lora_keeps_its_own_rank_and_alpha(tmp_path: Path) -> None:
    chain = Chain(tiny_model("llama"), config("llama"))
    randomise(chain)
    save_adapter(chain, tmp_path, "some/base", "0123")
    saved = read_config(tmp_path)
    assert (saved.r, saved.lora_alpha, set(saved.target_modules or ())) == (4, 8, {"q_proj", "v_proj", "down_proj"})
    twin = Chain(tiny_model("llama"), saved)
    load_adapter(twin, tmp_path)
    for name, bank in chain.banks.items():
        assert torch.equal(bank.lora_B, twin.banks[name].lora_B)


def test_one_of_several_adapters_goes_out_and_in(tmp_path: Path) -> None:
    chain = Chain(tiny_model("qwen2", torch.float64).eval(), config("qwen2"), seeds=[0, 1, 2])
    randomise(chain)
    save_adapter(chain, tmp_path, "some/base", "0123", expert=1)
    other = Chain(tiny_model("qwen2", torch.float64).eval(), config("qwen2"), seeds=[5, 6])
    load_adapter(other, tmp_path, expert=1)
    chain.route, other.route = HardRoute(torch.tensor([1])), HardRoute(torch.tensor([1]))
    x = inputs(1)
    assert (chain.model(x).logits - other.model(x).logits).abs().max() < 1e-12


def test_links_of_other_adapters_are_left_out(tmp_path: Path) -> None:
    """Adapter 0 went back to before a knot, adapter 1 to after it: the first one's file is as if it had been alone."""
    chain = Chain(tiny_model("llama", torch.float64).eval(), config("llama"), seeds=[0, 1])
    randomise(chain, 1)
    early = chain.live_link(0)
    chain.tie(5)
    chain.extend(2)
    randomise(chain, 2)
    chain.restore([early, chain.live_link(1)])
    ranks = [save_adapter(chain, tmp_path / str(adapter), "some/base", "0123", adapter) for adapter in (0, 1)]
    assert ranks == [4, 4 + 2]
    alone = Chain(tiny_model("llama", torch.float64).eval(), config("llama"))
    assert read_config(tmp_path / "0").r == 4
    load_adapter(alone, tmp_path / "0")
    for name, bank in alone.banks.items():
        assert torch.equal(bank.lora_A[0], early.layers[name]["lora_A"])
        assert torch.equal(bank.lora_B[0], early.layers[name]["lora_B"])


def test_an_adapter_that_has_learned_nothing_is_whole(tmp_path: Path) -> None:
    """After a knot, too, a link with `B` zero is not written; but something has to be."""
    chain = Chain(tiny_model("llama"), config("llama"))
    assert save_adapter(chain, tmp_path, "some/base", "0123") == 4
    randomise(chain)
    chain.tie(1)
    chain.extend(2)
    assert save_adapter(chain, tmp_path, "some/base", "0123") == 4
    saved = Chain(tiny_model("llama"), read_config(tmp_path))
    load_adapter(saved, tmp_path)
    assert (saved.model(inputs(2)).logits - chain.model(inputs(2)).logits).abs().max() < 1e-5


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = Chain(tiny_model("llama"), config("llama"))
    save_adapter(chain, tmp_path, "some/base", "0123")
    check_base(tmp_path, "some/base", "0123")
    with pytest.raises(
        LorachainsError, match=r"trained on some/base \(weights 0123\), not on other/base \(weights 4567\)"
    ):
        check_base(tmp_path, "other/base", "4567")
    (tmp_path / "base_fingerprint.txt").unlink()  # as PEFT writes adapters
    check_base(tmp_path, "other/base", "4567")
    assert "names some/base as its base, not other/base" in caplog.text
    with pytest.raises(LorachainsError, match="of another model or of other target_modules"):
        load_adapter(Chain(tiny_model("bloom"), config("bloom")), tmp_path)
    with pytest.raises(LorachainsError, match="has the shape"):
        load_adapter(Chain(tiny_model("llama"), config("llama", r=2)), tmp_path)


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
