"""A small HTTP server on loopback that answers like Setback's public routes. Texts with the word
"bad" are harmful; a test sets everything else."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], dict[str, Any]]


@dataclass
class PublicServer:
    """The server's configuration, and the requests it received.

    bodies: of every POST except the identity check, by path. refusals: responses to the next such
    requests instead. adapter_after: another adapter serves after that many verdicts.
    """

    adapter: str = "base"
    policy: str = "p1"
    model: str = "stub"
    adapter_after: tuple[int, str] | None = None
    policy_after: tuple[int, str] | None = None
    scores: bool = True
    refusals: list[Reply] = field(default_factory=list)
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    @property
    def sent(self) -> list[str]:
        """The last text of every body, sorted."""
        return sorted(_text(body) for _, body in self.bodies)

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        """Returns the response to a POST."""
        probe = body == {"input": "Hello."}
        with self.lock:
            if not probe:
                self.bodies.append((path, body))
                if self.refusals:
                    return self.refusals.pop(0)
                self._advance()
            headers = {"x-setback-adapter": self.adapter}
        result = self._result("bad" in _text(body))
        if path == "/v1/moderations":
            return 200, headers, {"model": self.model, "results": [result]}
        if "blocked" in _text(body):
            return 400, headers, {"error": {"message": "no", "code": "content_filter"}}
        side = {"type": "moderation_results", "results": [result]}
        safe = {"type": "moderation_results", "results": [self._result(harmful=False)]}
        return 200, headers, {"model": self.model, "moderation": {"input": side, "output": safe}}

    def metrics(self) -> str:
        """Returns the metrics that Prometheus reads."""
        labels = f'version="1",model_revision="r1",policy="{self.policy}"'
        return f"# TYPE setback_build_info gauge\nsetback_build_info{{{labels}}} 1.0\n"

    def _advance(self) -> None:
        if self.adapter_after and len(self.bodies) > self.adapter_after[0]:
            self.adapter = self.adapter_after[1]
        if self.policy_after and len(self.bodies) > self.policy_after[0]:
            self.policy = self.policy_after[1]

    def _result(self, harmful: bool) -> dict[str, Any]:
        scores = {"hate": 0.6 if harmful else 0.05, "violence": 0.3 if harmful else 0.05}
        return {"flagged": harmful, "category_scores": scores if self.scores else {}}


def _text(body: dict[str, Any]) -> str:
    return str(body.get("input") or body["messages"][-1]["content"])


@contextmanager
def serving(server: PublicServer) -> Iterator[PublicServer]:
    """Runs the server at its `url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {}, server.metrics().encode())

        def do_POST(self) -> None:
            server.keys.add(self.headers["authorization"])
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, content = server.reply(self.path, body)
            self._send(status, headers, json.dumps(content).encode())

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
