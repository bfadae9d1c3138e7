"""The load study, at a second a part."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import st_jv5
from eval.studies import load, overload


@pytest.mark.full
def test_the_study_tells_speed_and_latency_of_vectors_that_are_right(saved, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["load", "--model", saved, "--clients", "2", "--seconds", "1"])
    load.main()
    (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["texts"] > 0
    assert 0 < told["p50"] <= told["p99"]


class Fake(BaseHTTPRequestHandler):
    """A server of another kind."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, raw = self.answer(json.loads(body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Refuses(Fake):
    """Answers nothing else than that it is overloaded."""

    def answer(self, body: dict) -> tuple[int, bytes]:
        return 429, b"later"


@contextmanager
def serving(kind: type[Fake]) -> Iterator[int]:
    """A server's port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def test_a_client_that_is_refused_ends_the_study(model):
    with serving(Refuses) as port, pytest.raises(RuntimeError, match="429: b'later'"):
        load.load(model, port, load.Texts(), ["base"], 2, 5.0)


@pytest.fixture
def kind(model):
    """Servers that give the model's vectors, one of them backwards; their names and tasks."""
    seen: list[str] = []

    class Gives(Fake):
        """The retrieval adapter's vectors, three times as long."""

        def answer(self, body: dict) -> tuple[int, bytes]:
            seen.append(body["model"])
            (vector,) = 3 * st_jv5.encode(model, [body["input"]], "retrieval")
            vector = vector[::-1] if body["model"] == "backwards" else vector
            told = base64.b64encode(vector.tobytes()).decode()
            return 200, json.dumps({"data": [{"embedding": told}]}).encode()

    Gives.seen = seen
    return Gives


def test_a_server_beside_this_one_is_asked_for_the_same_texts_and_compared(
    model, kind, monkeypatch, capsys
):
    monkeypatch.setattr(load, "load_model", lambda path: model)
    with serving(kind) as port:
        monkeypatch.setattr(load, "server", lambda path: nullcontext((None, port)))
        monkeypatch.setattr(load, "load", lambda model, port, *rest: {"server": "st-jv5"})
        url = f"http://127.0.0.1:{port}/embeddings"
        flags = ["--clients", "2", "--seconds", "0.2", "--rounds", "2", "--tasks", "retrieval"]
        monkeypatch.setattr("sys.argv", ["load", *flags, "--beside", f"other={url}"])
        load.main()
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert [row["server"] for row in told] == ["st-jv5", "other"] * 2
        for row in told[1::2]:
            assert row["texts"] > 0
            assert row["least_cosine"] > 0.99999
        assert set(kind.seen) == {"m/retrieval", "other"}
        asked = load.Asked.beside(f"backwards={url}")
        with pytest.raises(SystemExit, match="backwards gives other vectors: a cosine"):
            load.load_beside(model, asked, load.Texts(), ["retrieval"], 1, 0.1)


def test_no_server_beside_is_asked_for_a_text_that_the_model_would_cut(model):
    texts = load.Texts(load.taken_whole(model))
    source = random.Random(0)
    lengths = [len(model.tokenizer(texts.draw(source))["input_ids"]) for _ in range(20)]
    assert max(lengths) <= model.max_seq_length


def test_what_cannot_be_asked_beside_is_told_at_once(model, monkeypatch):
    monkeypatch.setattr(load, "load_model", lambda path: model)
    for flags, message in (
        (["--beside", "http://x"], "NAME=http://HOST:PORT/PATH, not 'http://x'"),
        (["--beside", "a=http://x/embed"], "one task; name it with --tasks"),
    ):
        monkeypatch.setattr("sys.argv", ["load", *flags])
        with pytest.raises(SystemExit, match=message):
            load.main()


@pytest.mark.full
def test_clients_that_ask_again_lose_nothing_to_refusals_and_a_kill(saved, monkeypatch):
    monkeypatch.setattr(overload, "FLAGS", ("--max-requests", "1"))
    monkeypatch.setattr(overload, "POOL", 20)
    told = overload.overload(saved, clients=4, minutes=0.4, kills=1)
    assert told["answered"] > 0
    assert told["lost"] == 0
    assert told["refused"] > 0
    assert told["broken"] > 0
