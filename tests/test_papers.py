"""`papers/*.csv`: what is derived follows from what is printed, which fits together unless it is suspect."""

import ast
import csv
import math
import operator
import re
from itertools import groupby
from statistics import fmean

import pytest

from lorachains.config import papers_dir
from lorachains.reproduce import sweeps

Row = dict[str, str]
Key = tuple[str, str, str]

ROWS = {
    "SST-2": 872, "WSC": 104, "CB": 56, "WIC": 638, "BoolQ": 1000, "MultiRC": 1000, "RTE": 277, "COPA": 100,
    "ReCoRD": 1000,
}  # fmt: skip
"""Test rows of COLA's tasks that are scored by accuracy: 1,000, or all of the official validation set (App. A.1)."""
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def values(paper: str) -> dict[Key, Row]:
    with (papers_dir() / f"{paper}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    keyed = {(row["table"], row["row"], row["column"]): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


PAPERS = {name: values(name) for name in ("cola", "chain-of-lora", "moa")}
COLA, CHAIN, MOA = PAPERS.values()


def number(rows: dict[Key, Row], *key: str) -> float:
    return float(rows[key[0], key[1], key[2]]["value"])


def printed_as(exact: float, text: str) -> bool:
    """Whether a number is printed as `text`, rounded or cut off: the papers do both (and 84.6 is cut off to 84.59)."""
    scale = 10 ** len(text.partition(".")[2])
    shown = round(float(text) * scale)
    return shown in (math.floor(exact * scale + offset) for offset in (-1e-9, 1e-9, 0.5))


def evaluated(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return float(OPERATORS[type(node.op)](evaluated(node.left), evaluated(node.right)))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int | float)
    return float(node.value)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_value_has_its_status(paper: str) -> None:
    for key, row in PAPERS[paper].items():
        assert row["paper"] == paper
        assert row["status"] in ("printed", "derived", "missing", "suspect"), key
        assert (row["value"] == "") == (row["status"] == "missing"), key
        assert row["value"] == "" or math.isfinite(float(row["value"]))
        assert row["note"] or row["status"] == "printed", key
        assert row["unit"]


def test_what_is_derived_follows() -> None:
    derived = {key: row for key, row in COLA.items() if row["status"] == "derived"}
    assert len(derived) > 40
    for key, row in derived.items():
        formula = re.sub(r"\[(.*?)\|(.*?)\|(.*?)\]", lambda of: str(number(COLA, *of.groups())), row["note"])
        assert printed_as(evaluated(ast.parse(formula, mode="eval").body), row["value"]), key


def test_relative_gains_are_those_of_the_rows() -> None:
    """Tables 1, 2 and 6."""
    checked = 0
    for (table, row, column), own in COLA.items():
        if own["status"] != "printed" or not row.endswith("relative gains"):
            continue
        of = row.removesuffix("relative gains")
        gain = 100 * (number(COLA, table, f"{of}COLA", column) / number(COLA, table, f"{of}LoRA", column) - 1)
        assert printed_as(gain, own["value"]), (table, row, column)
        checked += 1
    assert checked == 29


def test_a_mean_of_five_accuracies_is_a_number_of_right_answers() -> None:
    """`k / (5 n)` for a whole `k`; what can't be is suspect, and nothing else is suspect for that reason."""
    checked = 0
    for (table, row, column), own in COLA.items():
        few = re.match("(100|50) rows", row)
        if column not in ROWS or "gains" in row or own["value"] == "" or row in ("ICL", "0-shot"):
            continue
        answers = 5 * min(ROWS[column], int(few[1]) if few else 1000)
        score = float(own["value"])
        right = {math.floor(score / 100 * answers) + more for more in (0, 1)}
        possible = any(printed_as(100 * k / answers, own["value"]) for k in right)
        if own["status"] != "derived":
            assert possible == ("a multiple of" not in own["note"]), (table, row, column)
            checked += 1
    assert checked > 100


def test_flops_saved_are_linear_in_the_rank() -> None:
    for task in ("CB", "WSC", "WIC"):
        saved = [number(COLA, "table4", f"COLA (8, {rank})", f"{task}, FLOPs saved") for rank in (6, 4, 2)]
        assert [value / saved[0] for value in saved] == pytest.approx([1, 2, 3], rel=5e-3)


def test_the_same_runs_in_two_tables() -> None:
    """A chain of three is Table 1's COLA; where the two differ, both are suspect."""
    for task in ("WSC", "SQuAD", "MultiRC", "CB", "COPA", "RTE"):
        one, other = COLA["table1", "COLA", task], COLA["table3", "length = 3", task]
        assert float(one["value"]) == float(other["value"]) or one["status"] == other["status"] == "suspect"


def test_the_chain_is_better_than_each_of_its_links() -> None:
    """Chain-of-LoRA, Table I: so it is no mean of them, and suspect."""
    for model in ("Bloomz-396m", "Bloomz-1b4", "Bloomz-6b4"):
        tasks = [
            float(row["value"]) for (table, name, column), row in CHAIN.items()
            if (table, column) == ("table1", model) and "LoRA" not in name
        ]  # fmt: skip
        assert len(tasks) == 23
        assert number(CHAIN, "table1", "Chain-of-LoRA", model) < min(tasks)
        assert CHAIN["table1", "Chain-of-LoRA", model]["status"] == "suspect"


def test_rates_sum_to_one_or_are_suspect() -> None:
    """Chain-of-LoRA, Table IV."""
    rates = [row for row in CHAIN.values() if row["table"] == "table4" and row["unit"] == "share"]
    by_block = sorted(rates, key=lambda row: (row["row"].rpartition(", ")[0], row["column"]))
    for _, block in groupby(by_block, key=lambda row: (row["row"].rpartition(", ")[0], row["column"])):
        rows = list(block)
        assert len(rows) == 3
        whole = math.isclose(sum(float(row["value"]) for row in rows), 1)
        assert {row["status"] for row in rows} == {"printed" if whole else "suspect"}


def test_averages_are_those_of_the_domains() -> None:
    """MoA, Tables 2, 3 and 8; Table 7 repeats Table 2's."""
    averages = {key: row for key, row in MOA.items() if key[1] == "Average"}
    assert len(averages) == 15
    for (table, _, column), row in averages.items():
        domains = [
            float(other["value"]) for key, other in MOA.items()
            if (key[0], key[2]) == (table, column) and key[1] != "Average"
        ]  # fmt: skip
        assert len(domains) == 8
        assert printed_as(fmean(domains), row["value"]), (table, column)
    for metric in ("PPL", "BLEU", "ROUGE-L"):
        assert number(MOA, "table7", "MoA", metric) == number(MOA, "table2", "Average", f"MoA, {metric}")


def test_accuracies_are_those_of_the_counts() -> None:
    """MoA, Table 5."""
    for row in ("Single-LoRA (mixed)", "Single-LoRA", "MoA"):
        right, total = (number(MOA, "table5", row, column) for column in ("Right", "Total"))
        assert printed_as(100 * right / total, MOA["table5", row, "Accuracy"]["value"])


@pytest.mark.parametrize("name", sweeps.names())
def test_a_sweep_has_the_labels_of_its_table(name: str) -> None:
    """But for those that it leaves out, with a reason. It may have more: controls, and what the paper doesn't tell."""
    sweep = sweeps.load(name, "paper")
    if sweep.paper is None:
        return
    published = {key[1:] for key in values(sweep.paper) if key[0] == sweep.table and "gains" not in key[1]}
    made = {(row.label, column.label) for row in sweep.rows for column in sweep.columns}
    assert published
    assert {place for place in published if not sweep.left_out.keys() & set(place)} <= made
    assert sweep.left_out.keys() <= {label for place in published - made for label in place}
