"""A server of a small model: as an application, and on a port of loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

from st_jv5.serve import Limits
from st_jv5.serve.app import create_app
from st_jv5.serve.batcher import Batcher
from tests.conftest import adapted

NAME = "mine"
ATOL = 3e-6
"""Of vectors that were computed in batches of other shapes: this model of random weights rounds up
to 1.5e-6 apart, MiniLM's less."""


@pytest.fixture(scope="module")
def served(backbones) -> SentenceTransformer:
    """The model: four adapters, 48 dims, texts of 64 tokens."""
    return adapted(backbones["eurobert"])


@pytest.fixture(scope="module")
def client(served) -> Iterator[TestClient]:
    with TestClient(create_app(served, [NAME], Limits(max_texts=64, max_bytes=100_000))) as client:
        yield client


def post(client: TestClient, path: str = "/v1/embeddings", **body: Any) -> Any:
    """The answer to a request for the served model."""
    return client.post(path, json={"model": NAME, **body})


@contextmanager
def running(app: Any) -> Iterator[str]:
    """A real server until the block ends; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(served) -> Iterator[str]:
    with running(create_app(served, [NAME])) as address:
        yield address


class Held:
    """A batcher whose batches wait until they are let go, and are written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        run: Callable[..., None] = Batcher._run

        def held(batcher: Batcher, batch: Any) -> None:
            self.batches.append([piece.job.texts[piece.place] for piece in batch])
            self.began.release()
            self.go.acquire()
            run(batcher, batch)

        monkeypatch.setattr(Batcher, "_run", held)

    def release(self) -> None:
        """All, from now on."""
        self.go.release(10_000)


@pytest.fixture
def held(monkeypatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.release()
