"""An encoder classifier's rows: what a selector is asked about, to be answered by a label instead of a name.

It is Table III's BERT of Chain-of-LoRA (IEEE SPL 2024), and Tab. 3's "specific classifier" of MoA (arXiv 2403.03432).
It reads the request as its user wrote it, without the chat template that a language model needs around it. The label
stands where a language model's answer would, as one more token: batches, losses and predictions are then a selector's.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from lorachains.batch import IGNORED, Tokens
from lorachains.data.selector import INSTRUCTION, Decoys, Question
from lorachains.data.tasks import SELECTOR, Example
from lorachains.data.tokens import Encoded

log = logging.getLogger(__name__)


def classifier_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], question: Question, template: str, max_length: int,
    decoys: Decoys | None = None,
) -> list[Encoded]:  # fmt: skip
    """The classifier's row of each row of any task.

    Args:
        tokenizer: the encoder's.
        rows: whose `task` is an index of the question's names.
        template: in which `{instruction}` stands for the request that the classifier reads.
        max_length: tokens of a text with its label; a longer text loses its beginning.
        decoys: see `selector_rows`.
    """
    if not rows:
        return []
    asked = [row.example.prompt if decoys is None else decoys.of(row.example, question) for row in rows]
    before, _, after = template.partition(INSTRUCTION)
    texts = [text.removeprefix(before).removesuffix(after) for text in asked]
    encodings = tokenizer(texts, truncation=True, max_length=max_length - 1, verbose=False).encodings
    found = []
    for row, text, encoding in zip(rows, texts, encodings, strict=True):
        cut, answers = bool(encoding.overflowing), question.answers
        labels = [row.task] if decoys else range(len(answers))
        choices = [Tokens([*encoding.ids, i], [IGNORED] * len(encoding.ids) + [i], cut) for i in labels]
        example = Example(SELECTOR, text, answers[row.task], row.example.source)
        found.append(Encoded(example if decoys else replace(example, candidates=answers), 0, choices))
    if cut_ones := sum(row.cut for row in found):
        log.warning("%d of %d texts cut to the encoder's %d tokens", cut_ones, len(found), max_length - 1)
    return found
