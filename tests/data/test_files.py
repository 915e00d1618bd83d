import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lorachains.data.files import files_in, read_rows
from lorachains.errors import LorachainsError

_ROWS = [{"kind": "a", "input": 'x, "y"\nz', "target": "1"}, {"kind": "b", "input": "好", "target": ""}]


def _write(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    elif path.suffix == ".json":
        path.write_text(json.dumps(_ROWS, indent=1))
    elif path.suffix == ".csv":
        path.write_text('\ufeffkind,input,target\na,"x, ""y""\nz",1\n\nb,好,\n', encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_ROWS), path)
    return path


@pytest.mark.parametrize(
    ("name", "places"),
    [("f.jsonl", [":1", ":2"]), ("f.json", ["#0", "#1"]), ("f.csv", [":2", ":5"]), ("f.parquet", ["#0", "#1"])],
)
def test_all_formats_give_the_same_rows(name: str, places: list[str], tmp_path: Path) -> None:
    path = _write(tmp_path / name)
    rows = list(read_rows(path))
    assert [dict(row.values) for row in rows] == _ROWS
    assert [row.source for row in rows] == [f"{path}{place}" for place in places]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("f.json", b"[1", "f.json: not JSON"),
        ("f.json", b"{}", "f.json: a dict, expected a list of objects"),
        ("f.json", b"[{}, 3]", "f.json#1: 3 is no object"),
        ("f.csv", b"a,b\n1,2\n1\n", r"f.csv:3: 1 fields, expected 2 \(a, b\)"),
        ("f.csv", b"a,b\n1,\xff\n", "f.csv: invalid start byte at byte"),
        ("f.csv", b'a,b\n1,"2"3\n', "f.csv:2: not CSV"),
        ("f.csv", b"a,b,a\n1,2,3\n", "f.csv:1: two columns have one name"),
        ("f.parquet", b"no", "f.parquet: not parquet"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LorachainsError, match=fault):
        list(read_rows(tmp_path / name))


def test_a_folder_has_its_files_of_known_kinds(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "notes.md"):
        (tmp_path / name).touch()
    assert [file.name for file in files_in(tmp_path, "data.path")] == ["a.csv", "b.jsonl"]
    (tmp_path / "folder.jsonl").mkdir()
    assert [file.name for file in files_in(tmp_path, "data.path")] == ["a.csv", "b.jsonl"]
    for name, says in {
        "notes.md": "is no .* file, nor a folder", "folder.jsonl": "nor a folder of them", "none": "is not there",
    }.items():  # fmt: skip
        with pytest.raises(LorachainsError, match=rf"{name} .*{says}.*: correct data.path"):
            files_in(tmp_path / name, "data.path")


@pytest.mark.parametrize(
    ("name", "content"), [("f.jsonl", '{"a": "x"}\n{"a": "y"}\n'), ("f.tsv", "a\nx\ny\n"), ("f.csv", "a\nx\ny\n")]
)
def test_a_byte_order_mark_is_no_part_of_the_rows(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert [dict(row.values) for row in read_rows(tmp_path / name)] == [{"a": "x"}, {"a": "y"}]


def test_long_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("a,b\n" + "x" * 200_000 + ",y\n")
    [row] = read_rows(tmp_path / "f.csv")
    assert len(row.text("a")) == 200_000
