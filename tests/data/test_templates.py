import pytest
from transformers import PreTrainedTokenizerFast

from lorachains.data.tasks import Example
from lorachains.data.templates import template
from lorachains.data.tokens import encode_eval, encode_train
from lorachains.errors import LorachainsError
from lorachains.models import byte_tokenizer
from tests.data.test_tokens import _bpe

_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def _chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def test_auto_is_chat_where_there_is_a_chat_template() -> None:
    assert template("auto", byte_tokenizer())("hi") == template("plain", byte_tokenizer())("hi") == "hi\n"
    assert template("auto", _chatty(byte_tokenizer()))("hi") == "<bos>[user]hi<eos>[assistant]"
    assert template("plain", _chatty(byte_tokenizer()))("hi") == "hi\n"


@pytest.mark.parametrize("own", [None, "<bos> $A"])
def test_a_chat_prompt_has_one_bos_and_ends_where_the_answer_begins(own: str | None) -> None:
    """Also where the tokenizer begins each text with one, beside the template's."""
    tokenizer = _chatty(_bpe(own))
    example = Example("t", template("chat", tokenizer)("one two"), "three", "f:1")
    [row] = encode_eval(tokenizer, [example], 0, 99)
    assert tokenizer.decode(row.choices[0].input_ids) == "<bos>[user]one two<eos>[assistant]three<eos>"
    assert tokenizer.decode(row.choices[0].answer.tolist()) == "three<eos>"
    assert row.prompt is not None
    assert tokenizer.decode(row.prompt.input_ids) == "<bos>[user]one two<eos>[assistant]"


def test_a_plain_prompts_tokens_are_the_same_with_and_without_the_answer() -> None:
    """Else what is generated from isn't what was trained on."""
    tokenizer = _bpe(None)
    for request in ("one two", "It was great.\nIs it?", "naïve 🙂"):
        example = Example("t", template("plain", tokenizer)(request), "three", "f:1")
        [trained], [row] = encode_train(tokenizer, [example], 0, 99), encode_eval(tokenizer, [example], 0, 99)
        assert row.prompt is not None
        assert trained.choices[0].input_ids[: len(row.prompt.input_ids)] == row.prompt.input_ids


@pytest.mark.parametrize(
    ("name", "fault"), [("chat", "has no chat template"), ("alpaca", "choose auto, plain or chat")]
)
def test_what_cannot_be_is_refused(name: str, fault: str) -> None:
    with pytest.raises(LorachainsError, match=fault):
        template(name, byte_tokenizer())
