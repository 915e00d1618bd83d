"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions (vLLM, llama.cpp and many services do)."""

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from lorachains.errors import LorachainsError
from lorachains.judge.rating import Reply

log = logging.getLogger(__name__)

KEY = "JUDGE_API_KEY"
"""The environment variable with the key; it is sent in a header, and written nowhere."""
_LONGEST_WAIT_S = 300.0
_REFUSED = (400, 422)  # this one prompt, for its length or its content
_AGAIN = (408, 409, 425, 429)  # and all from 500


class _Transient(Exception):
    """Worth another try, after so many seconds if the endpoint says so."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


@dataclass(frozen=True)
class Endpoint:
    """Asks an endpoint, several prompts at a time.

    Args:
        url: up to before `/chat/completions`.
        model: the name by which the endpoint knows it.
        request: what the request's body says beside `model` and `messages`.
        retries: after so many failures in a row of one prompt the judging stops.
        backoff: the wait before the first retry in seconds, about doubled at each further one, at most 5 minutes.
        timeout: how long the endpoint may be silent, in seconds.
        requests_per_minute: no more than so many; `None` for no limit.
        workers: prompts that are under way at a time.

    Raises:
        LorachainsError: a setting can't be right.
    """

    url: str
    model: str
    request: Mapping[str, Any]
    retries: int = 6
    backoff: float = 1.0
    timeout: float = 120.0
    requests_per_minute: float | None = None
    workers: int = 8

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LorachainsError("endpoint.url is no address: give it as http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise LorachainsError(f"endpoint.url holds more than an address: give the key as {KEY} in the environment")
        if not isinstance(self.request, Mapping):
            raise LorachainsError(f"endpoint.request is {self.request!r}: give a mapping, as {{temperature: 0}}")
        if not self.model:
            raise LorachainsError("endpoint.model is not given: name the model, or set JUDGE_MODEL")
        for name, least in (("retries", 0), ("workers", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise LorachainsError(f"endpoint.{name} is {value!r}: give a whole number of at least {least}")
        for name in ("backoff", "timeout", "requests_per_minute"):
            value = getattr(self, name)
            unlimited = name == "requests_per_minute" and value is None
            if not unlimited and not (isinstance(value, int | float) and value > 0):
                raise LorachainsError(f"endpoint.{name} is {value!r}: give a number above 0")
        if not re.fullmatch(r"[!-~]*", _key()):
            raise LorachainsError(f"{KEY} holds characters that no key has: set it anew")

    @property
    def identity(self) -> str:
        """Address, model and request."""
        return json.dumps([self.url, self.model, dict(self.request)], sort_keys=True)

    def replies(self, prompts: Sequence[str]) -> Iterator[Reply]:
        """One reply to each prompt, as they come.

        Raises:
            LorachainsError: the endpoint refuses the key or the model, or keeps failing.
        """
        stop, pace = threading.Event(), _Pace(self.requests_per_minute)
        with ThreadPoolExecutor(self.workers) as pool:
            asked = [pool.submit(self._ask, prompt, stop, pace) for prompt in prompts]
            try:
                for done in as_completed(asked):
                    if not isinstance(done.exception(), _Stopped):
                        yield done.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, prompt: str, stop: threading.Event, pace: "_Pace") -> Reply:
        for failures in range(1, self.retries + 2):
            stop.wait(pace.turn())
            if stop.is_set():
                raise _Stopped
            try:
                return self._try(prompt)
            except _Transient as error:
                why, wait = str(error), error.after
            except LorachainsError:
                stop.set()  # here: this thread may begin another request before the one that waits has seen the error
                raise
            if failures <= self.retries:
                wait = self.backoff * 2 ** (failures - 1) * random.uniform(1, 1.5) if wait is None else wait
                log.debug("failure %d: %s: next try in %.1f s", failures, why, wait)
                stop.wait(min(wait, _LONGEST_WAIT_S))
        stop.set()
        raise LorachainsError(
            f"{self.url} failed {self.retries + 1} times in a row, last with {why}: what it has answered is kept; "
            "give the same command again when it is well"
        )

    def _try(self, prompt: str) -> Reply:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.request}
        try:
            response = requests.post(
                f"{self.url.rstrip('/')}/chat/completions", json=body, auth=_sign, timeout=self.timeout,
                allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as error:
            raise _Transient(_clean(f"{type(error).__name__}: {error}")) from None
        status = response.status_code
        if status == 200:
            return Reply(prompt, _content(response))
        said = _clean(f"{status} {response.reason}: {response.text[:300]}")
        if status in _REFUSED:
            return Reply(prompt, said, refused=True)
        if status in _AGAIN or status >= 500:
            raise _Transient(said, _retry_after(response.headers.get("Retry-After", "")))
        raise LorachainsError(f"{self.url} says {said}: check endpoint.url, endpoint.model and {KEY}")


class _Stopped(Exception):
    """Not asked, since another request has ended it all."""


class _Pace:
    """Turns that threads take, evenly spread over time."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def turn(self) -> float:
        """How many seconds to wait until one's turn."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._interval
        return begin - now


def _key() -> str:
    return os.environ.get(KEY, "").strip()


def _sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Adds the key, if there is one; given as `auth`, it also keeps requests from sending what ~/.netrc holds."""
    if key := _key():
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _clean(text: str) -> str:
    """Text from outside, on its way to a file or a log: without the key, should it be echoed, and valid Unicode."""
    text = text.replace(key, "***") if (key := _key()) else text
    return text.encode(errors="replace").decode()


def _content(response: requests.Response) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError):
        raise _Transient(_clean(f"200, but no chat completion: {response.text[:300]!r}")) from None
    if not isinstance(content, str):
        raise _Transient(_clean(f"200, but no text: {str(content)[:300]}"))
    return _clean(content)


def _retry_after(header: str) -> float | None:
    """The header in seconds; `None` if it says nothing that can be understood."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
