"""A server that speaks OpenAI's embeddings API on loopback, in front of a real model."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

Fault = Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool]
"""Called before a request is answered; True: it has been dealt with."""


class Server:
    """What it was asked, and how it misbehaves."""

    path = "/v1/embeddings"

    def __init__(self, model: SentenceTransformer | None = None) -> None:
        self.model = model
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.under_way = self.most_under_way = 0
        self.faults: list[Fault] = []
        """One is taken for each request, until there are none."""
        self.pause_seconds = 0.0
        self.change: Callable[[np.ndarray], Any] = lambda vectors: vectors
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            self.requests.append(body)
            self.keys.add(handler.headers.get("Authorization"))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            fault = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(self.pause_seconds)
            if fault is not None and fault(handler, body):
                return
            with self.lock:
                vectors = self.change(self.model.encode(body["input"], batch_size=64))
            as_base64 = body.get("encoding_format") == "base64"
            data = [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(np.float32(row).tobytes()).decode()
                    if as_base64
                    else list(map(float, row)),
                }
                for index, row in enumerate(vectors)
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            data.reverse()  # nothing promises their order
            send(handler, 200, {"object": "list", "data": data, "model": "m", "usage": usage})
        finally:
            with self.lock:
                self.under_way -= 1


def send(handler: BaseHTTPRequestHandler, status: int, body: Any, **headers: str) -> bool:
    """Answer with JSON."""
    raw = json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)
    return True


@contextmanager
def serve(told: Server) -> Iterator[Server]:
    """Run a server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != told.path:
                send(self, 404, {"error": {"message": f"no {self.path}"}})
                return
            told.answer(self, body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
