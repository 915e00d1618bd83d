"""A reply is kept whole or not at all, for its judge and its prompt alone."""

from pathlib import Path

import pytest

from lorachains.judge import ReplyCache


def test_replies_belong_to_a_judge_and_a_prompt(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, "one")
    for text in ("Rating: 5\r\n", "", "评分 \ud800"):
        cache.put("prompt", text)
        assert cache.get("prompt") == text
    assert cache.get("prompt ") is None
    assert ReplyCache(tmp_path, "two").get("prompt") is None
    assert ReplyCache(tmp_path, "one").get("prompt") == "评分 \ud800"


@pytest.mark.parametrize("damage", ["", "{", "[1]", "{}", '{"reply": "Rat'])
def test_a_damaged_reply_is_asked_for_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ReplyCache(tmp_path, "one")
    cache.put("prompt", "Rating: 5")
    (file,) = tmp_path.rglob("*.json")
    file.write_text(damage)
    assert cache.get("prompt") is None
    assert f"{file} is damaged" in caplog.text
    cache.put("prompt", "Rating: 6")
    assert cache.get("prompt") == "Rating: 6"


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("disk full")

    cache = ReplyCache(tmp_path, "one")
    cache.put("prompt", "Rating: 5")
    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        cache.put("prompt", "Rating: 1")
    assert cache.get("prompt") == "Rating: 5"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
