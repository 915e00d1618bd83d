"""A base model with the tokens that a corpus uses, and no others: smaller embeddings, and a smaller softmax.

Chain-of-LoRA (IEEE SPL 2024) trains such models, `bloomz-396m-zh` and others. The tokenizer is pruned with the weights,
to one that still reads any text: of a byte-pair encoding the bytes are kept, and the merges that lead to a kept token.
A text whose tokens are all kept is cut into the same ones as before, since no other merge had a part in it. Other texts
are cut into smaller pieces. What isn't kept can't be generated.
"""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorachains.errors import LorachainsError
from lorachains.models.identity import fingerprint
from lorachains.models.language_model import LanguageModel, Pruned

_BYTES = {*pre_tokenizers.ByteLevel.alphabet(), *(f"<0x{byte:02X}>" for byte in range(256))}
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def prune(base: LanguageModel, used: Iterable[int]) -> LanguageModel:
    """The model with the `used` tokens, all special ones, the bytes, and the tokens that these are merged from.

    The logits of kept tokens are the same as before. The model is changed in place, the tokenizer isn't.

    Raises:
        LorachainsError: the tokenizer is no byte-pair encoding.
    """
    tokenizer, kept = prune_tokenizer(base.tokenizer, used)
    before = fingerprint(base.model)
    _prune_weights(base.model, kept)
    _renumber(base.model, kept)
    return replace(base, tokenizer=tokenizer, pruned=Pruned(tuple(kept), before))


def prune_tokenizer(
    tokenizer: PreTrainedTokenizerBase, used: Iterable[int]
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer that `prune` describes, and the kept tokens by their ids before, ascending."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise LorachainsError(
            f"model.prune_vocab is true, but the tokenizer is of the kind {model['type']}, not BPE: set it to false"
        )
    vocab: dict[str, int] = model["vocab"]
    special = {token["content"]: token["id"] for token in state["added_tokens"]}
    wanted = set(used)
    tokens = {token for token, index in vocab.items() if index in wanted or token in special or token in _BYTES}
    tokens |= {model["unk_token"]} & vocab.keys()
    tokens = _with_parts(tokens, model["merges"])
    kept = sorted({vocab[token] for token in tokens} | set(special.values()))
    now = {before: index for index, before in enumerate(kept)}
    model["vocab"] = {token: now[vocab[token]] for token in tokens}
    model["merges"] = [(a, b) for a, b in model["merges"] if {a, b, a + b} <= tokens]
    for token in state["added_tokens"]:
        token["id"] = now[token["id"]]
    state["post_processor"] = _renumbered(state["post_processor"], now)
    small = deepcopy(tokenizer)
    small._tokenizer = Tokenizer.from_str(json.dumps(state))
    return small, kept


def _with_parts(tokens: set[str], merges: Sequence[Sequence[str]]) -> set[str]:
    """The tokens, and all that they can be merged from."""
    parts: dict[str, list[str]] = {}
    for a, b in merges:
        parts.setdefault(a + b, []).extend((a, b))
    found, waiting = set(tokens), list(tokens)
    while waiting:
        new = set(parts.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


def _renumbered(node: Any, now: dict[int, int]) -> Any:
    """A post-processor's description: special tokens stand in it as `"ids": [1]` or as `["</s>", 2]`."""
    if isinstance(node, dict):
        return {k: [now[i] for i in v] if k == "ids" else _renumbered(v, now) for k, v in node.items()}
    if isinstance(node, list) and len(node) == 2 and isinstance(node[0], str) and type(node[1]) is int:
        return [node[0], now[node[1]]]
    return [_renumbered(inner, now) for inner in node] if isinstance(node, list) else node


@torch.no_grad()
def _prune_weights(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leaves the kept tokens' rows of the embedding and of the head, be they one tensor or two."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = [embedding.weight, head.weight, getattr(head, "bias", None)]
    for tensor in {id(tensor): tensor for tensor in tensors if isinstance(tensor, nn.Parameter)}.values():
        tensor[: len(kept)] = tensor[torch.tensor(kept, device=tensor.device)]
    model.resize_token_embeddings(len(kept), mean_resizing=False)


def _renumber(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """The ids of special tokens in the model's settings."""
    now = {before: index for index, before in enumerate(kept)}
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    for config in {id(config): config for config in configs}.values():
        for name in _SPECIAL:
            value = getattr(config, name, None)
            if isinstance(value, list):
                setattr(config, name, [now[index] for index in value if index in now])
            elif value is not None:
                setattr(config, name, now.get(value))
