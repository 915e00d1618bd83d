from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorachains.batch import IGNORED
from lorachains.data import Example
from lorachains.data.tokens import (
    collate_eval,
    collate_train,
    encode_eval,
    encode_train,
    padding_token,
)
from lorachains.errors import LorachainsError

_CORPUS = ["It was great. It was terrible?\nYes", "Is it true? Yes or No?\nNo", "one two three 1 2 3"] * 4
_SPECIAL = ["<bos>", "<eos>"]


def _bpe(template: str | None, *, split_words: bool = True, pad: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained here, with BOS as in `template`; without `split_words`, tokens span words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if template:
        special = [(token, tokenizer.token_to_id(token)) for token in _SPECIAL]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2's, Bloom's and SmolLM2's
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token=pad)


_TEMPLATES = [None, "<bos> $A", "<bos> $A <eos>"]
_CHOICE = Example("t", "the film It was", " great", "f:1", (" terrible", " great"))
_FREE = Example("t", "one two\nAnswer:", " 3\n2", "f:2")
_NEWLINE = Example("t", "Is it true? Yes or No?\n", "No", "f:3", ("Yes", "No"))
_UNICODE = Example("t", "naïve 🙂 It was", " 好é", "f:4")


@pytest.mark.parametrize("template", _TEMPLATES)
@pytest.mark.parametrize("example", [_CHOICE, _FREE, _NEWLINE, _UNICODE], ids=lambda example: example.source)
def test_labels_are_the_answer_and_nothing_else(template: str | None, example: Example) -> None:
    tokenizer = _bpe(template)
    (row,) = encode_train(tokenizer, [example], 0, 99)
    (text,) = row.choices
    labels = [label for label in text.labels if label != IGNORED]
    end = "" if example.candidates else "<eos>"
    assert tokenizer.decode(labels) == example.answer + end
    assert text.labels[-len(labels) :] == labels == text.input_ids[-len(labels) :]
    start = "<bos>" if template else ""
    assert tokenizer.decode(text.input_ids) == start + example.prompt + example.answer + end


def test_a_token_merged_over_the_joint_counts_as_answer() -> None:
    tokenizer = _bpe(None, split_words=False)
    joined = Example("t", "It was", " great", "f:1", (" great", " bad"))
    (row,) = encode_train(tokenizer, [joined], 0, 99)
    answer = str(tokenizer.decode([label for label in row.choices[0].labels if label != IGNORED]))
    assert answer.endswith(" great")
    assert len(answer) > len(" great")  # the token over the joint holds the end of the prompt too


def test_all_candidates_are_encoded_in_order() -> None:
    tokenizer = _bpe(None)
    (row,) = encode_eval(tokenizer, [_CHOICE], 0, 99)
    assert [tokenizer.decode([t for t in c.labels if t != IGNORED]) for c in row.choices] == [" terrible", " great"]
    assert row.prompt is None


def test_a_free_answer_is_its_only_choice_and_has_a_prompt() -> None:
    tokenizer = _bpe("<bos> $A <eos>")
    (row,) = encode_eval(tokenizer, [_FREE], 0, 99)
    assert len(row.choices) == 1
    assert row.prompt is not None
    assert tokenizer.decode(row.prompt.input_ids) == "<bos>" + _FREE.prompt
    assert set(row.prompt.labels) == {IGNORED}


@pytest.mark.parametrize("template", _TEMPLATES)
def test_truncation_cuts_the_prompt_from_the_left_and_keeps_bos_and_answer(template: str | None) -> None:
    tokenizer = _bpe(template)
    long = replace(_FREE, prompt="zz " * 50 + _FREE.prompt)
    (whole,), (cut,), (fits,) = (
        encode_train(tokenizer, [e], 0, limit) for e, limit in [(long, 999), (long, 20), (_FREE, 20)]
    )
    assert (whole.cut, cut.cut, fits.cut) == (False, True, False)
    head = int(template is not None)
    assert len(cut.choices[0].input_ids) == 20
    assert cut.choices[0].input_ids == whole.choices[0].input_ids[:head] + whole.choices[0].input_ids[head - 20 :]
    assert [x for x in cut.choices[0].labels if x != IGNORED] == [x for x in whole.choices[0].labels if x != IGNORED]
    (prompted,) = encode_eval(tokenizer, [long], 0, 20)
    assert prompted.prompt is not None
    assert len(prompted.prompt.input_ids) == 20


@pytest.mark.parametrize("template", [None, "<bos> $A"])
def test_an_answer_that_does_not_fit_is_refused(template: str | None) -> None:
    tokenizer = _bpe(template)
    free = replace(_FREE, answer=" q q q q")
    n_answer = sum(label != IGNORED for label in encode_train(tokenizer, [free], 0, 99)[0].choices[0].labels)
    encode_train(tokenizer, [free], 0, n_answer + 1)  # one token before it is enough
    with pytest.raises(
        LorachainsError, match=f"f:2: the answer has {n_answer} tokens, too many for data.max_length={n_answer}"
    ):
        encode_train(tokenizer, [free], 0, n_answer)


def test_training_batches_are_right_padded() -> None:
    tokenizer = _bpe(None)
    rows = encode_train(tokenizer, [_CHOICE, _FREE], 0, 99) + encode_train(tokenizer, [_NEWLINE], 1, 99)
    batch = collate_train(rows, pad=7)
    assert batch.task.tolist() == [0, 0, 1]
    for index, row in enumerate(rows):
        n, (text,) = row.length, row.choices
        assert batch.input_ids[index].tolist() == text.input_ids + [7] * (batch.input_ids.shape[1] - n)
        assert batch.attention_mask[index].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
        assert batch.labels[index].tolist() == text.labels + [IGNORED] * (batch.input_ids.shape[1] - n)
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.task)} == {torch.int64}


def test_eval_batches_hold_candidates_example_by_example() -> None:
    tokenizer = _bpe(None)
    three = Example("t", "Is it?", " No", "f:9", (" Yes", " No", " one"))
    batch = collate_eval(encode_eval(tokenizer, [_CHOICE, three], 2, 99), pad=0)
    assert batch.examples == [_CHOICE, three]
    assert batch.choices.tolist() == [2, 3]
    assert batch.gold.tolist() == [1, 1]
    assert batch.scored.task.tolist() == [2] * 5
    assert batch.prompts is None
    texts = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch.scored.input_ids, batch.scored.attention_mask, strict=True)
    ]
    assert texts == [e.prompt + c for e in (_CHOICE, three) for c in e.candidates]


def test_prompts_to_generate_from_are_left_padded() -> None:
    tokenizer = _bpe("<bos> $A")
    batch = collate_eval(encode_eval(tokenizer, [_FREE, _UNICODE], 0, 99), pad=0)
    assert batch.prompts is not None
    assert batch.prompts.attention_mask[:, -1].tolist() == [1, 1]
    assert batch.prompts.labels.eq(IGNORED).all()
    assert (batch.choices.tolist(), batch.gold.tolist()) == ([1, 1], [0, 0])
    prompts = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch.prompts.input_ids, batch.prompts.attention_mask, strict=True)
    ]
    assert prompts == ["<bos>" + _FREE.prompt, "<bos>" + _UNICODE.prompt]


def test_padding_falls_back_to_eos() -> None:
    assert padding_token(_bpe(None)) == _bpe(None).eos_token_id
    assert padding_token(_bpe(None, pad="<bos>")) == _bpe(None).bos_token_id


def test_tokenizers_without_eos_are_refused_for_free_answers() -> None:
    tokenizer = _bpe(None)
    tokenizer.eos_token = None
    encode_train(tokenizer, [_CHOICE], 0, 99)
    with pytest.raises(LorachainsError, match="no end-of-sequence token"):
        encode_train(tokenizer, [_FREE], 0, 99)


def test_batches_move_between_devices() -> None:
    batch = collate_eval(encode_eval(_bpe(None), [_FREE], 0, 99), pad=0).to("meta")
    assert batch.prompts is not None
    tensors = [batch.scored.input_ids, batch.prompts.input_ids, batch.choices, batch.gold]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
