"""An endpoint that fails, is slow, wants a rest or talks nonsense, and a key that is told to nobody."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from lorachains.errors import LorachainsError
from lorachains.judge import Endpoint, Reply
from tests.judge.endpoints import Asked, Said, completion, endpoint

KEY = "sk-very-secret"


def judge(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url, "m", {"temperature": 0, "max_tokens": 9}, **{"backoff": 0.001, "workers": 4, **settings})


def ask(url: str, prompts: list[str], **settings: Any) -> dict[str, Reply]:
    return {reply.prompt: reply for reply in judge(url, **settings).replies(prompts)}


def test_what_is_sent_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY + "\n")
    prompts = [f"prompt {i} 好" for i in range(20)]
    with endpoint(lambda asked, _: completion(f"{asked.prompt}!")) as server:
        replies = ask(server.url + "/", prompts)
    assert {p: r.text for p, r in replies.items()} == {p: f"{p}!" for p in prompts}
    assert not any(reply.refused for reply in replies.values())
    first = server.asked[0]
    assert first.path == "/v1/chat/completions"
    assert first.body.keys() == {"model", "messages", "temperature", "max_tokens"}
    assert first.headers["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with endpoint(lambda *_: completion("Rating: 5")) as server:
        ask(server.url, ["a"])
    assert "Authorization" not in server.asked[0].headers


FAULTS = [
    Said(500, b"boom"),
    Said(503, b"", {"Retry-After": "0"}),
    Said(429, b"slow down", {"Retry-After": "nonsense"}),
    Said(200, b"<html>"),
    Said(200, b"{}"),
    Said(200, b'{"choices": []}'),
    Said(200, b"[1]"),
    Said(200, b'{"choices": [{"message": {"content": ["a"]}}]}'),
    Said(200, b"cut short", {"Content-Encoding": "gzip"}),
]


def test_failures_are_tried_again() -> None:
    def answer(asked: Asked, before: int) -> Said:
        return FAULTS[before] if before < len(FAULTS) else completion("well again")

    with endpoint(answer) as server:
        replies = ask(server.url, ["a", "b"], retries=len(FAULTS))
        assert {reply.text for reply in replies.values()} == {"well again"}
        assert server.times("a") == len(FAULTS) + 1


def test_it_gives_up_in_the_end_and_says_why() -> None:
    with (
        endpoint(lambda *_: Said(500, b"boom")) as server,
        pytest.raises(LorachainsError, match=r"failed 3 times in a row, last with 500 .*boom.*same command again"),
    ):
        ask(server.url, ["a"], retries=2)
    assert len(server.asked) == 3
    with pytest.raises(LorachainsError, match="failed 1 times in a row, last with ConnectionError"):
        ask(server.url, ["a"], retries=0)  # nobody is there any more


def test_a_silent_endpoint_is_a_failure() -> None:
    done = threading.Event()

    def answer(asked: Asked, before: int) -> Said:
        if before == 0:
            done.wait(5)
        return completion("at last")

    with endpoint(answer) as server:
        assert ask(server.url, ["a"], timeout=0.1)["a"].text == "at last"
        done.set()


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_it_waits_as_long_as_it_is_told(form: str) -> None:
    def answer(asked: Asked, before: int) -> Said:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return completion("ok") if before else Said(429, b"", {"Retry-After": "1" if form == "seconds" else later})

    with endpoint(answer) as server:
        begin = time.monotonic()
        ask(server.url, ["a"])
    assert 0.95 <= time.monotonic() - begin < 4


def test_prompts_that_are_refused_are_told_apart() -> None:
    def answer(asked: Asked, before: int) -> Said:
        return Said(400, b"bad content") if asked.prompt == "b" else completion("ok")

    with endpoint(answer) as server:
        replies = ask(server.url, ["a", "b", "c"])
    assert [replies[p].refused for p in "abc"] == [False, True, False]
    assert "bad content" in replies["b"].text
    assert server.times("b") == 1


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_what_no_retry_can_mend_stops_at_once(status: int) -> None:
    with (
        endpoint(lambda *_: Said(status, b"no", {"Location": "/elsewhere"})) as server,
        pytest.raises(LorachainsError, match=f"says {status} .*: check endpoint.url, endpoint.model and JUDGE_API_KEY"),
    ):
        ask(server.url, [str(i) for i in range(50)], workers=1)
    assert len(server.asked) == 1


def test_an_empty_reply_is_one() -> None:
    with endpoint(lambda *_: completion(None)) as server:
        assert ask(server.url, ["a"])["a"] == Reply("a", "")


def test_requests_are_spread_over_time_and_workers() -> None:
    came: list[float] = []

    def answer(asked: Asked, before: int) -> Said:
        came.append(time.monotonic())
        time.sleep(0.05)
        return completion("ok")

    prompts = [str(i) for i in range(6)]
    with endpoint(answer) as server:
        begun = time.monotonic()
        ask(server.url, prompts, requests_per_minute=600)
        assert came[-1] - begun >= 0.5  # the sixth's turn comes after five tenths of a second
        ask(server.url, [f"again {i}" for i in range(12)], workers=3)
    assert 1 < server.at_once <= 3


def test_the_key_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def answer(asked: Asked, before: int) -> Said:
        said = asked.headers["Authorization"]
        if asked.prompt == "stop":
            return Said(401, said.encode())
        if asked.prompt == "refuse":
            return Said(400, said.encode())
        return completion(said) if before else Said(500, said.encode())

    with endpoint(answer) as server:
        replies = ask(server.url, ["echo", "refuse"])
        assert replies["echo"].text == "Bearer ***"
        assert "***" in replies["refuse"].text
        with pytest.raises(LorachainsError, match="401") as error:
            ask(server.url, ["stop"])
        with pytest.raises(LorachainsError, match="500") as failed:
            ask(server.url, ["new"], retries=0)
    made = judge(server.url)
    told = [caplog.text, str(error.value), str(failed.value), repr(made), made.identity, str(replies)]
    assert not any(KEY in text for text in told)


def test_the_identity_is_all_that_a_reply_depends_on() -> None:
    made = judge("http://a/v1")
    assert made.identity == judge("http://a/v1", workers=1, retries=0).identity
    others = [judge("http://b/v1"), Endpoint("http://a/v1", "n", made.request), Endpoint("http://a/v1", "m", {})]
    assert len({made.identity, *(other.identity for other in others)}) == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "localhost:8000"}, "endpoint.url is no address"),
        ({"url": f"https://me:{KEY}@host/v1"}, "give the key as JUDGE_API_KEY"),
        ({"url": f"https://host/v1?key={KEY}"}, "give the key as JUDGE_API_KEY"),
        ({"model": None}, "endpoint.model is not given"),
        ({"workers": 0}, "endpoint.workers is 0"),
        ({"workers": 1.5}, "endpoint.workers is 1.5"),
        ({"retries": -1}, "endpoint.retries is -1"),
        ({"timeout": "long"}, "endpoint.timeout is 'long'"),
        ({"timeout": None}, "endpoint.timeout is None"),
        ({"requests_per_minute": 0}, "endpoint.requests_per_minute is 0"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(LorachainsError, match=says) as error:
        Endpoint(**{"url": "http://a/v1", "model": "m", "request": {}, **settings})
    assert KEY not in str(error.value)


def test_a_key_that_can_not_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", f"{KEY} é")
    with pytest.raises(LorachainsError, match="JUDGE_API_KEY holds characters") as error:
        judge("http://a/v1")
    assert KEY not in str(error.value)
