"""A mixture on disk: each expert's folder in PEFT's format, `router.safetensors`, `mixture.json`, and a card.

The experts are ordinary PEFT adapters, each of which works alone. `router.safetensors` holds one tensor, `weight`, of
the shape `(blocks, experts, hidden)`, with the experts in the order in which `mixture.json` names them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.experts import load_experts
from lorachains.mixture import Mixture
from lorachains.models import LanguageModel, fingerprint
from lorachains.peft_format import check_base, read_config
from lorachains.routers import POOLS

BY_TOKEN = "token"
ROUTER, ABOUT, CARD = "router.safetensors", "mixture.json", "README.md"


@dataclass(frozen=True)
class About:
    """What `mixture.json` says.

    Attributes:
        names: the experts', one a domain.
        base, base_fingerprint: the model under them.
        pool, decision, top_k, shared, voters, reads: see `Mixture`; the pool "token" is MoE-LoRA's, which reads none.
            `reads` is "experts" in files from before there was a choice.
        template: how a user's request becomes a prompt, with `{instruction}` in its place.
        max_length: tokens of a prompt; a longer one loses its beginning.
        stop: what ends an answer; `None` for the end-of-sequence token alone.
    """

    names: list[str]
    base: str
    base_fingerprint: str
    pool: str
    decision: str
    top_k: int | None = None
    shared: bool = True
    voters: list[int] | None = None
    reads: str = "experts"
    template: str = "{instruction}"
    max_length: int = 1024
    stop: str | None = None

    @property
    def by_token(self) -> bool:
        """Whether routers go by the token, as MoE-LoRA's."""
        return self.pool == BY_TOKEN


def save_routers(folder: Path, about: About, weight: Float[Tensor, "blocks experts hidden"]) -> None:
    """Writes `router.safetensors` and `mixture.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight.detach().float().cpu().contiguous()}, folder / ROUTER, metadata={"format": "pt"})
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_routers(folder: Path) -> tuple[About, Float[Tensor, "blocks experts hidden"]]:
    """What `save_routers` has written.

    Raises:
        LorachainsError: the folder holds no mixture, or a damaged one.
    """
    if not (folder / ABOUT).is_file():
        raise LorachainsError(
            f"{folder} holds no mixture: {ABOUT} is missing; give the adapters/ of a run of method=moa"
        )
    try:
        about = About(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        weight = load_file(folder / ROUTER)["weight"]
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise LorachainsError(
            f"the mixture in {folder} can't be read ({error}): it is damaged, copy or train it again"
        ) from error
    if weight.dim() != 3 or weight.shape[1] != len(about.names):
        raise LorachainsError(
            f"{folder / ROUTER} has the shape {tuple(weight.shape)}, not one row for each of {about.names}"
        )
    return about, weight


def attach_mixture(base: LanguageModel, folder: Path, decision: str | None = None) -> tuple[Mixture, About]:
    """Puts a saved mixture onto the base model, in place.

    Args:
        decision: in place of its own.

    Raises:
        LorachainsError: there is none, it is damaged, or it belongs to another base.
    """
    about, weight = read_routers(folder)
    if about.by_token and decision not in (None, about.decision):
        raise LorachainsError(f"decision is {decision!r}, but {folder} decides for each token anew: leave it out")
    check_base(folder / about.names[0], base.name, known := fingerprint(base.model))
    if about.base_fingerprint != known:
        raise LorachainsError(
            f"the routers in {folder} were trained on {about.base} (weights {about.base_fingerprint}), not on "
            f"{base.name} (weights {known}): load them with their own base"
        )
    mixture = Mixture(
        chain_of(base, folder, about.names), POOLS[0] if about.by_token else about.pool,
        decision or about.decision, about.top_k, about.shared, about.voters, about.reads,
    )  # fmt: skip
    put_weight(mixture, weight, folder)
    return mixture, about


def chain_of(base: LanguageModel, folder: Path, names: list[str]) -> Chain:
    """A chain with the experts of these names, read from their folders."""
    config: LoraConfig = read_config(folder / names[0])
    config.init_lora_weights = True  # the weights are loaded
    known = fingerprint(base.model)
    chain = Chain(base.model, config, range(len(names)))
    load_experts(chain, [folder / name for name in names], base.name, known)
    return chain


@torch.no_grad()
def put_weight(mixture: Mixture, weight: Float[Tensor, "blocks experts hidden"], folder: Path) -> None:
    """Puts the routers' weights in place, as `read_routers` gives those of a folder.

    Raises:
        LorachainsError: they are of another model or of other experts.
    """
    if weight.shape != mixture.routers.weight.shape:
        raise LorachainsError(
            f"{folder / ROUTER} has the shape {tuple(weight.shape)}, the model needs "
            f"{tuple(mixture.routers.weight.shape)}: load the mixture with its own base"
        )
    mixture.routers.rows.copy_(weight.transpose(0, 1).flatten(1))


def write_card(folder: Path, about: About, metrics: Mapping[str, Any]) -> None:
    """Writes `README.md`: the base, the domains, and each domain's figures."""
    lines = ["# Mixture of LoRAs", "", f"- base: {about.base} (weights {about.base_fingerprint})"]
    read = f"{about.pool} ({about.reads})"
    lines += [f"- experts: {', '.join(about.names)}", f"- decision: {about.decision}, routers read: {read}", ""]
    lines += ["| domain | perplexity by label | routed | router accuracy |", "|---|---|---|---|"]
    for name in about.names:
        keys = (f"test/oracle/{name}/perplexity", f"test/routed/{name}/perplexity", f"test/router/{name}/accuracy")
        lines.append(f"| {name} | " + " | ".join(_shown(metrics.get(key)) for key in keys) + " |")
    lines += [
        "",
        "Each folder is an ordinary PEFT adapter. `router.safetensors`: `weight (blocks, experts, hidden)`.",
        "",
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"
