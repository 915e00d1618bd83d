"""The rows of official files that nest them below their passages: one for each question, in the hub's form."""

from collections.abc import Iterator
from pathlib import Path

from lorachains.data.answers import BETWEEN_SPANS
from lorachains.data.rows import Row, read_document, read_file


def multirc(path: Path) -> Iterator[Row]:
    """MultiRC: a row for each answer to a question, right or wrong."""
    for passage in read_file(path):
        for question in passage.rows("passage.questions"):
            asked = {"paragraph": passage.text("passage.text"), "question": question.text("question")}
            for answer in question.rows("answers"):
                yield Row({**answer.values, **asked, "answer": answer.text("text")}, answer.source)


def record(path: Path) -> Iterator[Row]:
    """ReCoRD: a row for each query, with the entities of the passage."""
    for passage in read_file(path):
        text = passage.text("passage.text")
        spans = passage.rows("passage.entities")
        entities = [text[span.index("start", len(text)) : span.index("end", len(text)) + 1] for span in spans]
        for query in passage.rows("qas"):
            answers = [answer.text("text") for answer in query.rows("answers")]
            yield Row({**query.values, "passage": text, "entities": entities, "answers": answers}, query.source)


def squad(path: Path) -> Iterator[Row]:
    """SQuAD v1.1: a row for each question."""
    for article in read_document(path).rows("data"):
        for paragraph in article.rows("paragraphs"):
            about = {"title": article.text("title"), "context": paragraph.text("context")}
            for question in paragraph.rows("qas"):
                answers = [answer.text("text") for answer in question.rows("answers")]
                yield Row({**question.values, **about, "answers": {"text": answers}}, question.source)


def drop(path: Path) -> Iterator[Row]:
    """DROP: a row for each question, from the official file or from JSON Lines of questions with their `answers`."""
    if path.suffix == ".jsonl":
        for row in read_file(path):
            yield Row({**row.values, "answers_spans": {"spans": row.texts("answers")}}, row.source)
        return
    document = read_document(path)
    for passage in map(document.row, document.values):
        for question in passage.rows("qa_pairs"):
            others = question.rows("validated_answers") if "validated_answers" in question.values else ()
            answers = [text for answer in (question.row("answer"), *others) if (text := _drop_answer(answer))]
            about = {"passage": passage.text("passage"), "answers_spans": {"spans": answers}}
            yield Row({**question.values, **about}, question.source)


def _drop_answer(answer: Row) -> str:
    """The number, the spans or the date that it is, as a text; "" where it is nothing."""
    if number := answer.text("number"):
        return number
    if answer.values.get("spans"):
        return BETWEEN_SPANS.join(answer.texts("spans"))
    return " ".join(filter(None, (answer.text(f"date.{part}") for part in ("day", "month", "year"))))
