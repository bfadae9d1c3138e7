"""The load study, at a second a part."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.studies import load, overload


@pytest.mark.full
def test_the_study_tells_speed_and_latency_of_vectors_that_are_right(saved, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["load", "--model", saved, "--clients", "2", "--seconds", "1"])
    load.main()
    (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["texts"] > 0
    assert 0 < told["p50"] <= told["p99"]


class Refuses(BaseHTTPRequestHandler):
    """Answers nothing else than that it is overloaded."""

    def do_POST(self) -> None:
        self.send_response(429)
        self.end_headers()
        self.wfile.write(b"later")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_client_that_is_refused_ends_the_study(model):
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(RuntimeError, match="429: b'later'"):
                load.load(model, server.server_port, load.Texts(), 2, 5.0)
        finally:
            server.shutdown()


@pytest.mark.full
def test_clients_that_ask_again_lose_nothing_to_refusals_and_a_kill(saved, monkeypatch):
    monkeypatch.setattr(overload, "FLAGS", ("--max-requests", "1"))
    monkeypatch.setattr(overload, "POOL", 20)
    told = overload.overload(saved, clients=4, minutes=0.4, kills=1)
    assert told["answered"] > 0
    assert told["lost"] == 0
    assert told["refused"] > 0
    assert told["broken"] > 0
