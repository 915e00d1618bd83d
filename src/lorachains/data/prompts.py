"""Rows as prompts in the words of MeZO (Malladi et al. 2023, arXiv 2305.17333, App. E), which COLA §A.1 takes over.

The wording, the answer words and their order are those of MeZO's code. The space before an answer word belongs to the
answer, so that a prompt never ends in a space; the text that the model reads is the same.

What differs: a question of DROP is answered by all spans of its first answer, where MeZO takes the first span, and
graded as DROP's own evaluation does, where MeZO grades it as SQuAD's. (The hub doesn't say which spans are one answer:
from there each counts as one, as with MeZO.) After the newline that ends a free answer with MeZO, the end-of-sequence
token is trained, too. And MultiRC's, SQuAD's and DROP's questions about one passage are in one split, where MeZO draws
them singly.
"""

from collections.abc import Callable
from typing import Any

from lorachains.data.answers import DROP, SQUAD
from lorachains.data.rows import Row
from lorachains.data.tasks import Example, Metric, Task
from lorachains.errors import LorachainsError

_Prompt = Callable[[Row], str]


def _classification(name: str, prompt: _Prompt, answers: dict[Any, str]) -> Task:
    """A task whose rows all have the same candidates, `answers`, each of which stands for a label."""

    def read(row: Row) -> Example:
        answer = row.label("label", answers)
        return Example(name, prompt(row), answer, row.source, tuple(answers.values()))

    return Task(name, read)


def _rte(row: Row) -> str:
    return f'{row.text("premise")}\nDoes this mean that "{row.text("hypothesis")}" is true? Yes or No?\n'


def _cb(row: Row) -> str:
    return f'Suppose {row.text("premise")} Can we infer that "{row.text("hypothesis")}"? Yes, No, or Maybe?\n'


def _boolq(row: Row) -> str:
    question = row.text("question").removesuffix("?") + "?"
    return f"{row.text('passage')} {question[0].upper()}{question[1:]}\n"


def _wic(row: Row) -> str:
    question = f'Does the word "{row.text("word")}" have the same meaning in these two sentences? Yes, No?'
    return f"{question}\n{row.text('sentence1')}\n{row.text('sentence2')}\n"


def _wsc(row: Row) -> str:
    text, noun, pronoun = row.text("text"), row.text("target.span1_text"), row.text("target.span2_text")
    question = f'does the pronoun "{_as_in(text, pronoun).lower()}" refer to {_as_in(text, noun)}? Yes or No?'
    return f"{text}\nIn the previous sentence, {question}\n"


def _as_in(text: str, span: str) -> str:
    """The span as it stands in the text (the hub's `wsc.fixed`): the official files have some in another case."""
    plain = span.replace("\n", " ").rstrip(".")
    variants = (span, plain, plain[:1].swapcase() + plain[1:])
    return next((variant for variant in variants if variant in text), span)


def _sst2(row: Row) -> str:
    return f"{row.text('sentence').strip()} It was"


_CONJUNCTIONS = {"cause": "because", "effect": "so"}


def _copa(row: Row) -> Example:
    premise = row.text("premise").rstrip().removesuffix(".")
    prompt = f"{premise} {row.label('question', _CONJUNCTIONS)}"
    candidates = tuple(f" {_inside_a_sentence(row.text(choice))}" for choice in ("choice1", "choice2"))
    return Example("copa", prompt, row.label("label", dict(enumerate(candidates))), row.source, candidates)


def _inside_a_sentence(choice: str) -> str:
    first, space, rest = choice.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def _multirc(row: Row) -> Example:
    passage, answers = row.text("paragraph"), {0: "No", 1: "Yes"}
    question = (
        f'Question: {row.text("question")}\nI found this answer "{row.text("answer")}". Is that correct? Yes or No?'
    )
    answer, candidates = row.label("label", answers), tuple(answers.values())
    return Example("multirc", f"{passage}\n{question}\n", answer, row.source, candidates, passage=passage)


_GAP = "@placeholder"


def _record(row: Row) -> Example:
    """Candidates and accepted answers each once and in alphabetical order, so that hub and files agree."""
    query = row.text("query")
    if _GAP not in query:
        raise LorachainsError(f"{row.source}: field 'query' has no {_GAP}: correct or delete the row")
    candidates, right = (
        tuple(f" {query.replace(_GAP, entity)}" for entity in sorted(set(row.texts(field))))
        for field in ("entities", "answers")
    )
    if strange := set(right) - set(candidates):
        raise LorachainsError(
            f"{row.source}: an answer is none of the entities ({min(strange)!r}): correct or delete the row"
        )
    passage = row.text("passage").replace("@highlight\n", "- ")
    return Example("record", f"{passage}\n-", right[0], row.source, candidates, right)


def _titled(row: Row) -> str:
    return f"Title: {row.text('title')}\nContext: {row.text('context')}"


def _untitled(row: Row) -> str:
    return f"Passage: {row.text('passage')}"


def _question(name: str, context: _Prompt, passage: str, answers: str, metrics: dict[str, Metric]) -> Task:
    """A task of free answers: `context` stands before the question, and names what is in the field `passage`."""

    def read(row: Row) -> Example:
        accepted = tuple(dict.fromkeys(row.texts(answers)))
        prompt = f"{context(row)}\nQuestion: {row.text('question').strip()}\nAnswer:"
        return Example(name, prompt, f" {accepted[0]}\n", row.source, (), accepted, row.text(passage))

    return Task(name, read, metrics, stop="\n")


TASKS = {
    task.name: task
    for task in (
        _classification("rte", _rte, {"entailment": "Yes", "not_entailment": "No"}),
        _classification("cb", _cb, {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"}),
        _classification("boolq", _boolq, {True: "Yes", False: "No"}),
        _classification("wic", _wic, {False: "No", True: "Yes"}),
        _classification("wsc", _wsc, {False: "No", True: "Yes"}),
        Task("copa", _copa),
        Task("multirc", _multirc),
        Task("record", _record),
        _classification("sst2", _sst2, {"0": " terrible", "1": " great"}),
        _question("squad", _titled, "context", "answers.text", SQUAD),
        _question("drop", _untitled, "passage", "answers_spans.spans", DROP),
    )
}
"""By name."""
