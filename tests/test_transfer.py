"""What goes out is PEFT's: its library reads the whole chain as one adapter, and so do we, link by link."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from lorachains.chain import Chain, Mode
from lorachains.errors import LorachainsError
from lorachains.live_link import live_link, restore
from lorachains.peft_format import check_base, read_adapter, read_config, write_adapter
from lorachains.routing import HardRoute
from lorachains.transfer import begin_with, export, load_adapter, save_adapter
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
    early = live_link(chain, 0)
    chain.tie(5)
    chain.extend(2)
    randomise(chain, 2)
    restore(chain, [early, live_link(chain, 1)])
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
    (tmp_path / "base_fingerprint.txt").write_bytes(b"\xff")
    with pytest.raises(LorachainsError, match="trained on some/base"):
        check_base(tmp_path, "some/base", "0123")
    (tmp_path / "base_fingerprint.txt").unlink()  # as PEFT writes adapters
    check_base(tmp_path, "other/base", "4567")
    assert "names some/base as its base, not other/base" in caplog.text
    with pytest.raises(LorachainsError, match="of another model or of other target_modules"):
        load_adapter(Chain(tiny_model("bloom"), config("bloom")), tmp_path)
    with pytest.raises(LorachainsError, match="has the rank 4, the model's link 2"):
        load_adapter(Chain(tiny_model("llama"), config("llama", r=2)), tmp_path)
    with pytest.raises(LorachainsError, match=r"has the shape \(32, 32\) \(in, out\), the model needs \(16, 16\)"):
        load_adapter(Chain(tiny_model("llama", hidden_size=16), config("llama")), tmp_path)


@pytest.mark.parametrize(("arch", "fields"), ARCH_AND_FIELDS)
def test_every_knot_can_be_found_again_on_disk(arch: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Rewound on disk and put onto the base again, or taken over as a new chain's first links, the chain is the one of
    the moment right after the knot."""
    x, base = inputs(3), tiny_model(arch, torch.float64).eval()
    chain = Chain(copy.deepcopy(base), config(arch, **fields))
    seen = [chain.model(x).logits]
    for link, rank in enumerate((2, 3, 1), 1):
        randomise(chain, link)
        chain.tie(10 * link)
        chain.extend(rank)
        seen.append(chain.model(x).logits)
    save_adapter(chain, tmp_path / "whole", "some/base", "0123")
    for links, logits in enumerate(seen):
        write_adapter(read_adapter(tmp_path / "whole").first(links), tmp_path / str(links))
        saved = read_adapter(tmp_path / str(links))
        assert saved.fingerprint == "0123"
        assert [link.knot for link in saved.links] == ([10, 20, 30][:links] if links else [None])
        attached = Chain(copy.deepcopy(base), read_config(tmp_path / str(links)))
        load_adapter(attached, tmp_path / str(links))
        assert (attached.model(x).logits - logits).abs().max() < 1e-10
        begun = Chain(copy.deepcopy(base), config(arch, **fields), seeds=[0, 7])
        begin_with(begun, tmp_path / "whole", links)
        begun.route = HardRoute(torch.tensor([0, 1, 0]))
        assert (begun.model(x).logits - logits).abs().max() < 1e-10
        assert (begun.ranks, begun.knots, begun.inherited) == ([4, 2, 3][:links], [10, 20, 30][:links], links)
        assert begun.knots_here == []


@pytest.mark.parametrize("mode", ["ledger", "merge"])
def test_a_chain_that_was_taken_over_goes_on_as_the_first_one_did(mode: Mode, tmp_path: Path) -> None:
    chain = Chain(tiny_model("llama", torch.float64).eval(), config("llama"))
    randomise(chain, 1)
    chain.tie(10)
    chain.extend()
    save_adapter(chain, tmp_path, "some/base", "0123")
    begun = Chain(tiny_model("llama", torch.float64).eval(), config("llama"))
    begin_with(begun, tmp_path)
    for name, bank in begun.banks.items():
        assert torch.equal(bank.lora_A, chain.banks[name].lora_A)  # the second link's draw, and no other
    if mode == "merge":
        begun.merge()
    for one in (chain, begun):
        randomise(one, 2)
    begun.tie(5, mode)
    begun.extend()
    again = Chain(tiny_model("llama", torch.float64).eval(), config("llama"))
    again.load_state_dict(begun.state_dict())
    x = inputs(2)
    assert (begun.model(x).logits - chain.model(x).logits).abs().max() < 1e-10
    assert torch.equal(again.model(x).logits, begun.model(x).logits)
    assert (again.knots, again.knots_here) == ([10, 5], [5])
    exported = export(begun, "some/base", "0123")
    assert [link.knot for link in exported.links] == [10, 5]


def test_a_live_link_that_is_taken_over_has_no_knot(tmp_path: Path) -> None:
    chain = Chain(tiny_model("llama"), config("llama"))
    randomise(chain, 1)
    save_adapter(chain, tmp_path, "some/base", "0123")
    begun = Chain(tiny_model("llama"), config("llama", r=2))
    begin_with(begun, tmp_path)
    randomise(begun, 2)
    assert [(link.rank, link.knot) for link in export(begun, "", "").links] == [(4, None), (2, None)]


def test_a_chain_that_does_not_fit_is_not_taken_over(tmp_path: Path) -> None:
    chain = Chain(tiny_model("opt"), config("opt", lora_bias=True, init_lora_weights=True))
    save_adapter(chain, tmp_path, "some/base", "0123")
    fewer = config("opt", target_modules=["q_proj"], lora_bias=True, init_lora_weights=True)
    with pytest.raises(LorachainsError, match=r"has 4 layers that are none of the model's targets, as .*fc1"):
        begin_with(Chain(tiny_model("opt"), fewer), tmp_path)
    with pytest.raises(LorachainsError, match="of another model or of other target_modules"):
        begin_with(Chain(tiny_model("llama"), config("llama")), tmp_path)
    with pytest.raises(LorachainsError, match="lora_bias is True in it: set it alike"):
        begin_with(Chain(tiny_model("opt"), config("opt")), tmp_path)
    with pytest.raises(LorachainsError, match="start_links is 2, but the chain has 1"):
        begin_with(Chain(tiny_model("opt"), chain.config), tmp_path, 2)


PLAIN = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
x, distances = torch.tensor(json.loads(sys.argv[2])), {}
for base in Path(sys.argv[1]).iterdir():
    for adapter in (base / "adapters").iterdir():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapter).eval()
        expected = torch.load(adapter / "logits.pt")
        distances[f"{base.name} {adapter.name}"] = float((model(x).logits - expected).abs().max())
print(json.dumps([distances, [name for name in sys.modules if "lorachains" in name]]))
"""


def test_plain_peft_in_a_process_without_this_library(tmp_path: Path) -> None:
    """The whole chain, rewound to each knot, and compressed to a rank that holds all of it: the same logits."""
    x, count = inputs(3), 0
    for arch in ("llama", "gpt2", "opt", "bloom"):
        base = tiny_model(arch).eval()
        base.save_pretrained(tmp_path / arch)
        chain = Chain(base, config(arch, r=2, lora_alpha=2))
        seen = {"0": chain.model(x).logits}
        for link in (1, 2):
            randomise(chain, link)
            chain.tie(link)
            chain.extend(3)
            seen[str(link)] = chain.model(x).logits
        randomise(chain, 3)
        seen["whole"] = seen["compressed"] = chain.model(x).logits
        whole = export(chain, arch, "0123")
        adapters = {"whole": whole, "compressed": whole.compressed(whole.rank)[0]}
        adapters |= {str(links): whole.first(links) for links in range(3)}
        for name, adapter in adapters.items():
            write_adapter(adapter, tmp_path / arch / "adapters" / name)
            torch.save(seen[name].detach(), tmp_path / arch / "adapters" / name / "logits.pt")
            count += 1
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path), json.dumps(x.tolist())], check=True, capture_output=True, text=True
    )
    distances, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours == []
    assert len(distances) == count
    assert max(distances.values()) < 1e-4, distances
    assert "unexpected" not in done.stderr.lower(), done.stderr
