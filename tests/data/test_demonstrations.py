"""Demonstrations are answered training rows of the prompt's own task; as many stand before it as fit."""

import pytest
from transformers import PreTrainedTokenizerFast

from lorachains.data.demonstrations import SEPARATOR, demonstrated, draw_demonstrations, with_demonstrations
from lorachains.data.module import TaskDataModule
from lorachains.data.tasks import Example
from lorachains.errors import LorachainsError

from .stub import stub_module


def module(tokenizer: PreTrainedTokenizerFast, **changes: object) -> TaskDataModule:
    data = stub_module(tokenizer, **changes)
    data.setup()
    return data


def test_the_text_is_mezos() -> None:
    """Row and answer, an empty line, row and answer, an empty line, the prompt (MeZO's `encode_prompt`)."""
    first, second, asked = (
        Example("rte", f'{text}\nDoes this mean that "{claim}" is true? Yes or No?\n', answer, "a:1", ("Yes", "No"))
        for text, claim, answer in (
            ("It rains.", "It is wet", "Yes"), ("It snows.", "It is hot", "No"), ("He ran.", "He moved", "Yes"),
        )
    )  # fmt: skip
    texts = sorted(draw_demonstrations([first, second], 9, "seed"))
    assert with_demonstrations(asked, texts).prompt + asked.answer == (
        'It rains.\nDoes this mean that "It is wet" is true? Yes or No?\nYes\n\n'
        'It snows.\nDoes this mean that "It is hot" is true? Yes or No?\nNo\n\n'
        'He ran.\nDoes this mean that "He moved" is true? Yes or No?\nYes'
    )


def test_an_answer_keeps_the_space_before_it_and_no_other() -> None:
    row = Example("sst2", "a fine film . It was", " great", "a:1", (" terrible", " great"))
    assert draw_demonstrations([row], 1, "seed") == ["a fine film . It was great"]
    asked = Example("sst2", "a bore . It was", " terrible", "b:1", (" terrible", " great"))
    assert with_demonstrations(asked, ["a fine film . It was great"]).prompt == (
        "a fine film . It was great\n\na bore . It was"
    )


def test_rows_are_the_seeds_own(tokenizer: PreTrainedTokenizerFast) -> None:
    train = module(tokenizer).splits[0].train
    drawn = draw_demonstrations(train, 8, "0")
    assert drawn == draw_demonstrations(train, 8, "0") != draw_demonstrations(train, 8, "1")
    assert len(set(drawn)) == 8
    assert sorted(draw_demonstrations(train, 99, "0")) == sorted(e.prompt + e.answer for e in train)


@pytest.mark.parametrize("task", ["stub", "free"])
@pytest.mark.parametrize(("max_length", "positions"), [(150, None), (400, None), (400, 160), (64, None)])
def test_as_many_as_fit(tokenizer: PreTrainedTokenizerFast, task: str, max_length: int, positions: int | None) -> None:
    """Against a loop over all numbers, with a byte a token."""
    data = module(tokenizer, tasks=[task], max_length=max_length, max_new_tokens=8)
    made, mean = demonstrated(data, 5, 3, positions)
    drawn = draw_demonstrations(data.splits[0].train, 5, f"3/{task}/demonstrations")
    counts = []
    for split in ("val", "test"):
        for before, after in zip(data.rows(split), made.rows(split), strict=True):
            answer = max(map(len, before.example.candidates or (before.example.answer + "E",)))  # and its end
            new = 8 if task == "free" else 0

            def length(k: int, prompt: str = before.example.prompt, answer: int = answer) -> int:
                return len(SEPARATOR.join([*drawn[5 - k :], prompt])) + answer

            fitting = [k for k in range(6) if length(k) <= max_length and length(k) + new <= (positions or 9999)]
            best = max(fitting, default=0)
            assert after.example.prompt == SEPARATOR.join([*drawn[5 - best :], before.example.prompt])
            assert after.length == length(best)
            assert not after.cut
            counts.append((split, best))
    assert mean == pytest.approx(sum(k for s, k in counts if s == "test") / len(made.rows("test")))
    assert ({5} == {k for _, k in counts}) == (max_length == 400 and positions is None)
    assert [row.choices for row in made.rows("train")] == [row.choices for row in data.rows("train")]


def test_no_validation_or_test_row_demonstrates_and_tasks_stay_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    data = module(tokenizer, tasks=["one", "two"], max_length=999)
    made, _ = demonstrated(data, 99, 0, None)
    train = [{e.prompt + e.answer for e in splits.train} for splits in data.splits]
    for split in ("val", "test"):
        for row in made.rows(split):
            *shown, prompt = row.example.prompt.split(SEPARATOR)
            assert set(shown) <= train[row.task]
            assert prompt in {e.prompt for e in getattr(data.splits[row.task], split)}
            assert len(shown) > 9


def test_none_are_the_rows_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    data = module(tokenizer)
    assert demonstrated(data, 0, 0, None) == (data, 0.0)


def test_a_free_answer_ends_where_the_next_demonstration_would_begin(tokenizer: PreTrainedTokenizerFast) -> None:
    data = module(tokenizer, tasks=["free"], max_length=200)
    made, _ = demonstrated(data, 2, 0, None)
    assert (data.stop, made.stop) == (None, SEPARATOR)


def test_no_room_at_all_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LorachainsError, match=r"not one demonstration fits .* raise data.max_length"):
        demonstrated(module(tokenizer, max_length=20), 4, 0, None)
