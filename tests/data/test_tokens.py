from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorachains.batch import IGNORED
from lorachains.data.tasks import Example
from lorachains.data.tokens import (
    Serving,
    collate_eval,
    collate_train,
    encode_eval,
    encode_train,
    padding_token,
)
from lorachains.errors import LorachainsError
from tests.batches import rebuilt

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


def test_training_batches_hold_the_gold_texts() -> None:
    tokenizer = _bpe(None)
    rows = encode_train(tokenizer, [_CHOICE, _FREE], 0, 99) + encode_train(tokenizer, [_NEWLINE], 1, 99)
    batch = collate_train([(0, row) for row in rows], Serving(), pad=7)
    assert rebuilt(batch) == [row.choices[0] for row in rows]
    assert batch.adapters is None
    assert batch.tokens == sum(row.length for row in rows)


@pytest.mark.parametrize(
    ("serving", "adapters"),
    [(Serving(), None), (Serving(2, 1), [0, 0, 1]), (Serving(2, 2), [0, 1, 2])],
    ids=str,
)
def test_each_run_has_adapters_of_its_own(serving: Serving, adapters: list[int] | None) -> None:
    """One for all its tasks, or one for each."""
    tokenizer = _bpe(None)
    (first,), (other,) = encode_eval(tokenizer, [_FREE], 0, 99), encode_eval(tokenizer, [_UNICODE], 1, 99)
    rows = [(0, first), (0, other), (1, first)]
    assert serving.adapters(rows) == adapters
    batch = collate_eval(rows, serving, pad=0)
    assert batch.runs == [0, 0, 1]
    assert rebuilt(batch.scored) == [row.choices[0] for _, row in rows]
    served = [int(batch.scored.served[batch.scored.candidate == i][0]) for i in range(3)]
    assert served == (adapters or [0, 0, 0])
    assert (None if batch.adapters is None else batch.adapters.tolist()) == adapters


def test_eval_batches_hold_candidates_example_by_example() -> None:
    tokenizer = _bpe(None)
    three = Example("t", "Is it?", " No", "f:9", (" Yes", " No", " one"))
    rows = encode_eval(tokenizer, [_CHOICE, three], 2, 99)
    batch = collate_eval([(0, row) for row in rows], Serving(), pad=0)
    assert batch.rows == rows
    assert batch.prompts == []
    texts = [tokenizer.decode(text.input_ids) for text in rebuilt(batch.scored)]
    assert texts == [e.prompt + c for e in (_CHOICE, three) for c in e.candidates]


def test_prompts_to_generate_from_end_where_the_answer_begins() -> None:
    tokenizer = _bpe("<bos> $A")
    batch = collate_eval([(0, row) for row in encode_eval(tokenizer, [_FREE, _UNICODE], 0, 99)], Serving(), pad=0)
    assert [tokenizer.decode(ids) for ids in batch.prompts] == ["<bos>" + _FREE.prompt, "<bos>" + _UNICODE.prompt]
    assert [tokenizer.decode(text.input_ids) for text in rebuilt(batch.scored)] == [
        "<bos>" + e.prompt + e.answer + "<eos>" for e in (_FREE, _UNICODE)
    ]


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
    rows = encode_eval(_bpe(None), [_FREE], 0, 99)
    batch = collate_eval([(0, rows[0]), (1, rows[0])], Serving(runs=2), pad=0).to("meta")
    assert batch.adapters is not None
    tensors = [*batch.scored.tensors().values(), batch.adapters]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
