"""Vectors from a server that speaks OpenAI's embeddings API."""

from __future__ import annotations

import logging
import pickle
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
