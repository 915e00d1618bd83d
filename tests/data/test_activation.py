"""Where an adapter is activated is a boundary between tokens, whatever the request ends with."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lorachains.data.activation import check_activated, invocation, shared_part
from lorachains.data.selector import Question
from lorachains.data.tasks import SELECTOR, Example
from lorachains.data.tokens import encode_train, prompt_tokens
from lorachains.errors import LorachainsError

QUESTION = Question("{instruction} Task:", {"one": "uno", "two": "dos"})
TEMPLATE = "Q: {instruction}\nA:"


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """Merges over all joints: two newlines, a colon with the space after it."""
    pieces = [*pre_tokenizers.ByteLevel.alphabet(), "ĊĊ", ":Ġ", "</s>"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("Ċ", "Ċ"), (":", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


def test_the_request_has_no_token_in_common_with_what_follows(merging: PreTrainedTokenizerFast) -> None:
    prompt = "Q: why?\n\nA:"
    assert "ĊĊ" in merging.convert_ids_to_tokens(merging.encode(prompt))
    shared = shared_part(TEMPLATE, prompt)
    [row] = encode_train(merging, [Example("one", prompt, " 4", "row", shared=shared)], 0, 99)
    [text] = row.choices
    assert merging.decode(text.input_ids[: text.start]) == "Q: why?\n"
    assert text.input_ids[text.start :][: -len(text.answer)] == merging.encode("\nA")
    assert merging.decode(text.answer[:-1]) == ": 4"
    assert prompt_tokens(merging, prompt, 99, shared).input_ids[text.start :] == merging.encode("\nA:")


def test_a_cut_prompt_is_activated_at_the_same_token(merging: PreTrainedTokenizerFast) -> None:
    prompt = "Q: " + "x" * 50 + "\nA:"
    for length in (99, 30, 8):
        tokens = prompt_tokens(merging, prompt, length, shared_part(TEMPLATE, prompt))
        assert merging.decode(tokens.input_ids[tokens.start :]) == "\nA:"
        assert len(tokens.input_ids) == min(length, len(merging.encode(prompt)))


def test_of_a_prompt_that_is_cut_short_of_its_request_the_tokenizers_first_token_is_still_the_bases(
    merging: PreTrainedTokenizerFast,
) -> None:
    backend = Tokenizer.from_str(merging.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", merging.eos_token_id)]
    )
    begins = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokens = prompt_tokens(begins, "Q: why?\nA:", 3, len("Q: why?"))
    assert tokens.input_ids == [merging.eos_token_id, *merging.encode("A:")]
    assert tokens.start == 1


def test_a_selector_is_invoked_by_what_no_name_changes(merging: PreTrainedTokenizerFast) -> None:
    assert invocation(merging, "selector", TEMPLATE, QUESTION, SELECTOR) == merging.encode("\nA: Task")
    assert invocation(merging, "all", TEMPLATE, QUESTION, "one") == merging.encode("\nA:")
    assert invocation(merging, "selector", TEMPLATE, QUESTION, "one") is None
    assert invocation(merging, "none", TEMPLATE, QUESTION, SELECTOR) is None


def test_what_can_not_be_activated(merging: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LorachainsError, match=r"method.activated is 'some': choose none, selector, all"):
        check_activated("some", QUESTION.prompt)
    with pytest.raises(LorachainsError, match=r"begin it with \{instruction\}"):
        check_activated("selector", "Task of {instruction}:")
    check_activated("none", "Task of {instruction}:")
    with pytest.raises(LorachainsError, match=r"choose method.activated=selector"):
        invocation(merging, "all", "{instruction}", QUESTION, "one")
    with pytest.raises(LorachainsError, match=r"add some"):
        invocation(merging, "all", "{instruction}", Question("{instruction}", {"one": "a", "two": "b"}), SELECTOR)
