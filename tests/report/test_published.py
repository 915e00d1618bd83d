"""A paper's values are read as they are written, and what is wrong is named with its line."""

from pathlib import Path

import pytest

from lorachains.errors import LorachainsError
from lorachains.report.published import read_published, same_label

HEADER = "paper,table,row,column,value,spread,unit,status,note"
GOOD = [
    "cola,Table 1,COLA,SST-2,93.32,,%,printed,",
    'cola,Table 1,LoRA,WSC,56.53,7.67,%,derived,"Table 3, length 1"',
    "cola,Table 1,LoRA,SST-2,,,%,missing,not in our copy",
    "cola,Table 4,COLA (8, 6),CB,3.6e11,,FLOPs,printed,".replace("COLA (8, 6)", '"COLA (8, 6)"'),
]


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    file = folder / "paper.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


def test_values_as_they_are_written(tmp_path: Path) -> None:
    values = read_published(write(tmp_path, *GOOD), "Table 1")
    assert [(v.row, v.column, v.value, v.unit, v.status) for v in values] == [
        ("COLA", "SST-2", 93.32, "%", "printed"),
        ("LoRA", "WSC", 56.53, "%", "derived"),
        ("LoRA", "SST-2", None, "%", "missing"),
    ]
    assert values[1].note == "Table 3, length 1"
    assert read_published(write(tmp_path, GOOD[-1]), None)[0].value == 3.6e11


def test_two_columns_can_be_absent(tmp_path: Path) -> None:
    header = "table,row,column,value,unit,status,note"
    assert read_published(write(tmp_path, "1,a,b,1,%,printed,", header=header), None)[0].paper == ""


@pytest.mark.parametrize(
    ("lines", "table", "message"),
    [
        (["cola,1,a,b,x,,%,printed,"], "1", r"paper\.csv:2: value is 'x': give a number"),
        (["cola,1,a,b,1,,%,guessed,"], "1", r"paper\.csv:2: status is 'guessed': choose one of printed, derived"),
        (["cola,1,a,b,,,%,printed,"], "1", r"paper\.csv:2: value is '', status printed: only what is missing"),
        (["cola,1,a,b,1,,%,missing,"], "1", r"paper\.csv:2: value is '1', status missing"),
        (
            ["cola,1,SST-2,b,1,,%,printed,", "cola,1,sst2,b,2,,%,printed,"],
            "1",
            r"paper\.csv:3: sst2, b is on line 2 too",
        ),
        (GOOD, "Table 9", r"table is 'Table 9': .* has Table 1, Table 4"),
        (GOOD, None, r"table is None: .* has Table 1, Table 4"),
        ([], None, r"table is None: .* has none"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lines: list[str], table: str | None, message: str) -> None:
    with pytest.raises(LorachainsError, match=message):
        read_published(write(tmp_path, *lines), table)


def test_no_such_file_or_column(tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match="which is no file"):
        read_published(tmp_path / "none.csv", None)
    with pytest.raises(LorachainsError, match=r"paper\.csv:1: has no column column: table,row,column"):
        read_published(write(tmp_path, header="table,row,value,unit,status,note"), None)


def test_labels_are_the_same_in_other_spellings() -> None:
    assert same_label("SST-2") == same_label("sst2")
    assert same_label("COLA (8, 6)") == same_label("cola 8_6")
    assert same_label("CB") != same_label("COPA")
