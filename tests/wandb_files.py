"""What a W&B run has written offline: the records that `wandb sync` sends, in LevelDB's log format."""

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

BLOCK, HEADER, FIRST = 32768, 7, 7
"""Bytes of a block, of a chunk's header (checksum, length, type), and of the file's own before it."""
FULL, BEGIN, MIDDLE, END = 1, 2, 3, 4


def records(file: Path) -> list[Record]:
    """All records of a `.wandb` file, as soon as W&B's own process has written the last one."""
    deadline = time.monotonic() + 30
    while not (found := list(_records(file))) or not found[-1].HasField("exit"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def _records(file: Path) -> Iterator[Record]:
    """Those that are whole; fails if a checksum is wrong."""
    data, at, whole = file.read_bytes(), FIRST, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # what is left of a block is padding
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        chunk = data[at + HEADER : at + HEADER + length]
        if len(chunk) < length:
            return
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == checksum
        whole = chunk if kind in (FULL, BEGIN) else whole + chunk
        at += HEADER + length
        if kind in (FULL, END):
            yield Record.FromString(whole)


def logged(found: Iterable[Record]) -> list[tuple[str, Any]]:
    """What was logged, by the name that it was logged under; what is of several parts comes in parts."""
    items = [item for record in found for item in record.history.item]
    return [(item.nested_key[0] if item.nested_key else item.key, json.loads(item.value_json)) for item in items]
