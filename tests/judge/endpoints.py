"""A chat endpoint on this machine that answers as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """An HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str | None) -> Said:
    return Said(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


@dataclass
class Asked:
    """A request that came."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][0]["content"])


@dataclass
class Server:
    """The address, and all requests so far; at most `at_once` were under way at a time."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0

    def times(self, prompt: str) -> int:
        return sum(request.prompt == prompt for request in self.asked)


@contextmanager
def endpoint(answer: Callable[[Asked, int], Said]) -> Iterator[Server]:
    """Serves what `answer` gives for a request and how often its prompt came before."""
    lock, state = threading.Lock(), {"now": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(self.path, body, dict(self.headers))
            with lock:
                before = server.times(asked.prompt)
                server.asked.append(asked)
                state["now"] += 1
                server.at_once = max(server.at_once, state["now"])
            said = answer(asked, before)
            with lock:
                state["now"] -= 1
            self.send_response(said.status)
            for name, value in {**said.headers, "Content-Length": str(len(said.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
