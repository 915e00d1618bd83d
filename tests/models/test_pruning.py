"""A pruned model is the whole one restricted to the kept tokens, and so is its tokenizer."""

import json
from copy import deepcopy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel, base_fingerprint, fingerprint, prune
from lorachains.models.pruning import prune_tokenizer
from tests.tiny import _FIELDS, ARCHITECTURES

_CORPUS = ["the cat sat on the mat and the hat", "low lower lowest newer newest wider", "你好 世界 你们好"] * 4
_TEXTS = ["the lowest cat", "newest mat", "你好"]
_SPECIAL = ["<pad>", "<bos>", "<eos>", "<role>"]


def _tokenizer(byte_level: bool = True, template: bool = True) -> PreTrainedTokenizerFast:
    """A byte-pair encoding trained here: of bytes, or of characters with bytes for the unknown ones (as Llama's)."""
    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "<pad>", byte_fallback=not byte_level))
    special = list(_SPECIAL)
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if not byte_level:  # they are ordinary tokens there
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = state["added_tokens"][: len(_SPECIAL)]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    if template:
        ids = [("<bos>", tokenizer.token_to_id("<bos>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def _used(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {token for text in _TEXTS for token in tokenizer(text).input_ids}


@pytest.mark.parametrize("byte_level", [True, False])
@pytest.mark.parametrize("template", [True, False])
def test_texts_of_kept_tokens_are_cut_as_before(byte_level: bool, template: bool) -> None:
    whole = _tokenizer(byte_level, template)
    small, kept = prune_tokenizer(whole, _used(whole))
    assert len(kept) == len(small) < len(whole)
    for text in [*_TEXTS, "the cat", "<role>the lowest<eos>"]:
        assert [kept[token] for token in small(text).input_ids] == whole(text).input_ids
    for name in ("pad", "bos", "eos"):
        assert kept[getattr(small, f"{name}_token_id")] == getattr(whole, f"{name}_token_id")
    assert small.convert_ids_to_tokens(list(range(len(kept)))) == whole.convert_ids_to_tokens(kept)


@pytest.mark.parametrize("byte_level", [True, False])
def test_other_texts_are_read_in_smaller_pieces(byte_level: bool) -> None:
    whole = _tokenizer(byte_level, template=False)
    small, _ = prune_tokenizer(whole, _used(whole))
    for text in ("wider hat", "世界 🙂 naïve"):
        assert small.decode(small(text).input_ids) == text
    assert len(small("wider hat").input_ids) > len(whole("wider hat").input_ids)


def test_the_whole_tokenizer_is_left_alone() -> None:
    whole = _tokenizer()
    before = whole.backend_tokenizer.to_str()
    prune_tokenizer(whole, _used(whole))
    assert whole.backend_tokenizer.to_str() == before


def test_other_kinds_of_tokenizers_are_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(LorachainsError, match=r"model.prune_vocab is true, but the tokenizer is of the kind WordLevel"):
        prune_tokenizer(words, [0])


def _model(arch: str, tied: bool, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """With more rows in the embedding than the tokenizer has tokens, as many models have."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(
        arch, vocab_size=len(tokenizer) + 8, tie_word_embeddings=tied, **_FIELDS[arch], **special
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return LanguageModel(AutoModelForCausalLM.from_config(config).eval(), tokenizer, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_kept_tokens_are_the_same(arch: str, tied: bool) -> None:
    tokenizer = _tokenizer()
    whole = _model(arch, tied, tokenizer)
    small = prune(deepcopy(whole), _used(tokenizer))
    assert small.pruned is not None
    kept = list(small.pruned.kept)
    for text in _TEXTS:
        before = whole.model(torch.tensor([tokenizer(text).input_ids])).logits[..., kept]
        after = small.model(torch.tensor([small.tokenizer(text).input_ids])).logits
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    layers = (small.model.get_input_embeddings(), small.model.get_output_embeddings())
    embedding, head = (layer.get_parameter("weight") for layer in layers)
    assert (embedding is head) == tied
    assert len(embedding) == len(head) == small.model.config.vocab_size == len(kept)
    assert [kept[getattr(small.model.config, f"{name}_token_id")] for name in ("pad", "bos", "eos")] == [0, 1, 2]
    assert small.model.generation_config.eos_token_id == small.tokenizer.eos_token_id


def test_it_goes_by_the_base_fingerprint_the_whole_model() -> None:
    tokenizer = _tokenizer()
    whole = _model("llama", True, tokenizer)
    small = prune(deepcopy(whole), _used(tokenizer))
    assert base_fingerprint(small) == base_fingerprint(whole) == fingerprint(whole.model) != fingerprint(small.model)
