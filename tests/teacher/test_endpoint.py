"""Vectors from a server that speaks OpenAI's embeddings API."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_jv5.teacher import EndpointTeacher, TeacherStore, fill
from tests import engines
from tests.conftest import MINILM
from tests.teacher.embedding_server import Server, send, serve


@pytest.fixture(scope="module")
def teacher() -> SentenceTransformer:
    return SentenceTransformer(MINILM)


@pytest.fixture
def server(teacher):
    with serve(Server(teacher)) as running:
        yield running


@pytest.fixture
def quick(monkeypatch):
    """The openai client waits half a second before its first new try; here it does not."""
    import openai._base_client as client

    monkeypatch.setattr(client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(client, "MAX_RETRY_DELAY", 0.001)


def space(folder: Path, **key) -> TeacherStore:
    return TeacherStore.open(folder, create=True).space("minilm", dim=384, max_tokens=256, **key)


def vectors(store: TeacherStore, texts: list[str]) -> np.ndarray:
    return store.gather(store.rows(texts)).float().numpy()


def test_a_server_gives_the_vectors_of_the_local_model(server: Server, teacher, texts, tmp_path):
    endpoint = EndpointTeacher(server.url, "minilm", batch_size=5, concurrency=3)
    over_http, local = (space(tmp_path / name, prompt="say: ") for name in ("http", "local"))
    assert fill(over_http, endpoint, texts) == len(texts) == fill(local, teacher, texts)
    np.testing.assert_allclose(vectors(over_http, texts), vectors(local, texts), atol=2e-4)
    asked = [text for body in server.requests[1:] for text in body["input"]]
    assert sorted(asked) == sorted("say: " + text for text in texts)
    assert all(len(body["input"]) <= 5 and body["model"] == "minilm" for body in server.requests)
    assert fill(over_http, endpoint, texts) == 0


def test_requests_run_at_once_up_to_the_limit(server: Server, texts, tmp_path):
    server.pause_seconds = 0.05
    endpoint = EndpointTeacher(server.url, "m", batch_size=4, concurrency=3)
    fill(space(tmp_path, shards=1), endpoint, texts)
    assert server.most_under_way == 3


def test_a_busy_failing_or_silent_server_is_asked_again(server: Server, texts, tmp_path, quick):
    def drop(handler, body) -> bool:
        handler.close_connection = True
        handler.connection.close()
        return True

    server.faults = [
        lambda handler, body: send(handler, 429, {"error": {"message": "slow down"}}),
        lambda handler, body: send(handler, 503, {"error": {"message": "loading"}}),
        drop,
        lambda handler, body: send(handler, 500, {"error": {"message": "oops"}}),
    ]
    endpoint = EndpointTeacher(server.url, "m", batch_size=64, concurrency=1, retries=4)
    assert fill(space(tmp_path, shards=1), endpoint, texts[:8]) == 8
    assert len(server.requests) == 6  # four failed, the width, the texts


def test_a_server_that_stays_down_stops_the_run_and_loses_nothing(
    server: Server, texts, tmp_path, quick
):
    store = space(tmp_path, shards=1)
    endpoint = EndpointTeacher(server.url, "m", batch_size=64, concurrency=1, retries=1)

    def down(handler, body) -> bool:
        return send(handler, 503, {"error": {"message": "out of memory"}})

    server.faults = [lambda *_: False, lambda *_: False, down, down]
    with pytest.raises(ValueError, match=r"/v1 answered 503 to 10 texts.*out of memory"):
        fill(store, endpoint, texts, chunk_texts=10)
    assert len(store) == 10
    assert fill(store, endpoint, texts, chunk_texts=10) == len(texts) - 10


def test_a_refused_text_is_named_and_not_tried_again(server: Server, tmp_path):
    server.faults = [
        lambda *_: False,
        lambda handler, body: send(handler, 400, {"error": {"message": "input too long"}}),
    ]
    with pytest.raises(ValueError, match=r"answered 400 .* 'the long one': .*input too long"):
        fill(space(tmp_path, shards=1), EndpointTeacher(server.url, "m"), ["the long one", "one"])
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:, :7], r"gives 7 dims, but the space has 384"),
        (lambda rows: rows[:-1] if len(rows) > 1 else rows, r"gave 2 vectors for 3 texts"),
        (
            lambda rows: [row[: 384 - (i == 1)] for i, row in enumerate(rows)],
            r"gave 383 dims for '[abc]', but 384 for others",
        ),
        (lambda rows: rows * (0 if len(rows) > 1 else 1), "NaN, infinite or zero .*: '[abc]'"),
        (lambda rows: rows * (np.nan if len(rows) > 1 else 1), "NaN, infinite or zero"),
    ],
)
def test_broken_answers_stop_the_run(server: Server, tmp_path, change, message):
    server.change = change
    with pytest.raises(ValueError, match=message):
        fill(space(tmp_path, shards=1), EndpointTeacher(server.url, "m"), ["a", "b", "c"])
    assert len(space(tmp_path)) == 0


def test_a_server_that_is_not_there_is_named(tmp_path, quick):
    endpoint = EndpointTeacher("http://127.0.0.1:9/v1", "m", retries=1, timeout_seconds=2)
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/v1 did not answer .* 2 times"):
        fill(space(tmp_path), endpoint, ["a"])


def test_the_key_is_sent_and_written_nowhere(
    server: Server, texts, tmp_path, monkeypatch, caplog, capsys, quick
):
    key = "sk-secret-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    caplog.set_level(logging.DEBUG)
    endpoint = EndpointTeacher(server.url, "m", key_env="MY_KEY", retries=0)
    fill(space(tmp_path / "store"), endpoint, texts[:4])
    assert server.keys == {f"Bearer {key}"}
    server.faults = [lambda h, body: send(h, 401, {"error": {"message": "wrong key"}})]
    with pytest.raises(ValueError, match="answered 401") as error:
        fill(space(tmp_path / "other"), endpoint, texts[:4])
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    seen = [caplog.text, *capsys.readouterr(), str(error.value), repr(endpoint.__dict__)]
    assert b"127.0.0.1" in b"".join(written)  # who filled it is kept
    for text in (*(raw.decode("latin-1") for raw in written), *seen):
        assert key not in text
    assert key.encode() not in pickle.dumps(endpoint)


KEY = "sk-secret-0123456789"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 302])
def test_a_key_that_the_server_sends_back_stands_in_no_message(
    server: Server, tmp_path, monkeypatch, quick, status
):
    monkeypatch.setenv("MY_KEY", KEY)

    def echo(handler, body) -> bool:
        told = {"error": {"message": f"wrong: {handler.headers['Authorization']}"}}
        return send(handler, status, told, Location=f"http://other.org/v1?key={KEY}")

    server.faults = [echo]
    endpoint = EndpointTeacher(server.url, "m", key_env="MY_KEY", retries=0)
    with pytest.raises(ValueError, match=r"answered|sends 1 texts") as error:
        fill(space(tmp_path), endpoint, ["a"])
    shown = "".join(traceback.format_exception(error.value))
    assert KEY not in shown
    assert "***" in shown or "other.org" in shown


def test_a_key_in_the_place_of_a_vector_stands_in_no_message(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    for told in (rows({"index": 0, "embedding": KEY}), KEY.encode()):
        server.faults = [answer(told)]
        with pytest.raises(ValueError, match=r"gave '?\*\*\*|sent no JSON, but b'\*\*\*") as error:
            fill(space(tmp_path), EndpointTeacher(server.url, "m", key_env="MY_KEY"), ["a"])
        assert KEY not in "".join(traceback.format_exception(error.value))


def test_an_answer_from_another_address_is_not_asked_for(server: Server, teacher, tmp_path):
    with serve(Server(teacher)) as other:
        server.faults = [lambda h, body: send(h, 307, {}, Location=f"{other.url}/embeddings")]
        with pytest.raises(ValueError, match=rf"sends 1 texts.* on to {other.url}/embeddings"):
            fill(space(tmp_path), EndpointTeacher(server.url, "m", retries=0), ["a"])
        assert not other.requests


def answer(raw: bytes, kind: str = "application/json", **headers: str):
    def send_raw(handler, body) -> bool:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)
        return True

    return send_raw


def rows(*told: object) -> bytes:
    return json.dumps({"object": "list", "data": list(told)}).encode()


ROW = {"index": 0, "embedding": [0.5] * 384}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"<html>Sign in</html>", "sent no JSON, but b'<html>Sign in"),
        (b"", "sent no JSON, but b''"),
        (b"[]", "without a list of vectors under 'data'"),
        (b'{"data": null}', "without a list of vectors under 'data'"),
        (b'{"data": [null]}', "without a list of vectors under 'data'"),
        (b'{"error": "no"}', "without a list of vectors under 'data'"),
        (b"[" * 100_000, "sent no JSON"),
        (b"\xff\xfe", "sent no JSON"),
        (rows(), "gave 0 vectors for 1 texts"),
        (rows(ROW, ROW), "gave 2 vectors for 1 texts"),
        (rows({"embedding": [0.5] * 384}), "indices are not 0..0"),
        (rows({"index": "0", "embedding": [0.5] * 384}), "indices are not 0..0"),
        (rows({"index": True, "embedding": [0.5] * 384}), "indices are not 0..0"),
        (rows({"index": 7, "embedding": [0.5] * 384}), "indices are not 0..0"),
        (rows({"index": 0}), "gave None for 'dim'"),
        (rows({"index": 0, "embedding": None}), "gave None for 'dim'"),
        (rows({"index": 0, "embedding": "no base64!"}), "gave 'no base64!' for 'dim'"),
        (rows({"index": 0, "embedding": "AAA="}), "gave 'AAA=' for 'dim'"),
        (rows({"index": 0, "embedding": ["a"] * 384}), "gave .'a', 'a'.* for 'dim'"),
        (rows({"index": 0, "embedding": [[0.5]] * 384}), "for 'dim'; a teacher gives vectors"),
        (rows({"index": 0, "embedding": {"x": 1}}), "for 'dim'; a teacher gives vectors"),
        (rows({"index": 0, "embedding": []}), "gives 0 dims|for 'dim'; a teacher gives vectors"),
        (rows({"index": 0, "embedding": 0.5}), "gave 0.5 for 'dim'"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_an_answer_of_another_shape_is_refused_in_words(server: Server, tmp_path, raw, message):
    server.faults = [answer(raw, "text/html" if raw.startswith(b"<") else "application/json")]
    with pytest.raises(ValueError, match=message):
        fill(space(tmp_path), EndpointTeacher(server.url, "m", retries=0), ["a"])


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_without_end_is_cut_off(server: Server, tmp_path, monkeypatch, status):
    monkeypatch.setattr("st_jv5.teacher.endpoint.MAX_TEXT_BYTES", 10_000)
    sent = 0

    def endless(handler, body) -> bool:
        nonlocal sent
        handler.send_response(status)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        try:
            while sent < 10**9:
                handler.wfile.write(b" " * 100_000)
                sent += 100_000
        except OSError:
            handler.close_connection = True
        return True

    server.faults = [endless]
    with pytest.raises(ValueError, match="gave more than 330000 bytes without an end"):
        fill(space(tmp_path), EndpointTeacher(server.url, "m", retries=0), ["a"])
    assert sent < 10**8


def test_an_answer_that_trickles_is_given_up(server: Server, tmp_path):
    def trickle(handler, body) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**6))
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True
        return True

    server.faults = [trickle]
    endpoint = EndpointTeacher(server.url, "m", retries=0, timeout_seconds=0.4)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"took more than 0.4 s for an answer that it had begun"):
        fill(space(tmp_path), endpoint, ["a"])
    assert time.monotonic() - begin < 3


def test_an_answer_that_would_unfold_is_refused(server: Server, tmp_path):
    server.faults = [answer(gzip.compress(b" " * 10**6), Content_Encoding="gzip")]
    with pytest.raises(ValueError, match="sends a compressed answer, which was not asked for"):
        fill(space(tmp_path), EndpointTeacher(server.url, "m", retries=0), ["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "url must be like http"),
        ({"url": "http://me:pass@host/v1"}, r"key into the environment \(OPENAI_API_KEY\)"),
        ({"url": "http://host/v1?key=pass@"}, r"key into the environment \(OPENAI_API_KEY\)"),
        ({"batch_size": 0}, "batch_size must be positive, not 0"),
        ({"concurrency": -1}, "concurrency must be positive, not -1"),
        ({"retries": -1}, "retries must be >= 0, not -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        EndpointTeacher(**{"url": "http://localhost/v1", "model": "m"} | settings)
    assert "pass@" not in str(error.value)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_infinity_gives_the_vectors_of_the_local_model(teacher, texts, tmp_path):
    over_http, local = (space(tmp_path / name, prompt="say: ") for name in ("http", "local"))
    with engines.infinity(MINILM) as address:
        endpoint = EndpointTeacher(address, "m", batch_size=8, retries=0)
        assert fill(over_http, endpoint, texts) == len(texts) == fill(local, teacher, texts)
    np.testing.assert_allclose(vectors(over_http, texts), vectors(local, texts), atol=2e-4)
