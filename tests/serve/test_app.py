"""Requests and answers: OpenAI's, Jina's and TEI's forms, our tasks, and what is refused."""

from __future__ import annotations

import base64
import json
import logging

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings
from starlette.testclient import TestClient

import st_jv5
from st_jv5.serve.app import create_app
from st_jv5.task_table import BASE, TASKS
from tests.conftest import adapted, real_texts
from tests.serve.conftest import ATOL, NAME, post

BLEND = {"retrieval": 0.7, "classification": 0.3}
WAYS = [
    *(({"task": task}, task, None) for task in [*TASKS, BASE, "query", "document"]),
    ({"model": f"{NAME}/clustering"}, "clustering", None),
    ({"model": f"{NAME}/query"}, "query", None),
    ({"task": "retrieval", "prompt_name": "query"}, "retrieval", "query"),
    ({"task": "retrieval.query"}, "retrieval", "query"),
    ({"task": "retrieval.passage"}, "retrieval", "document"),
    ({"task": "separation"}, "clustering", None),
    ({"task": BLEND}, BLEND, None),
    ({"task": {"query": 1.0}}, "query", None),
]


def vectors_of(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]])


def error_of(answer) -> dict:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("asked", "task", "prompt_name"), WAYS)
def test_every_way_to_name_a_task_gives_the_vectors_of_encode(
    client, served, texts, asked, task, prompt_name
):
    found = vectors_of(post(client, input=texts[:5], **asked))
    wanted = st_jv5.encode(served, texts[:5], task, prompt_name=prompt_name)
    np.testing.assert_allclose(found, wanted, atol=ATOL)


def test_heads_give_the_vectors_of_encode_and_join_requests_of_the_base(backbones, texts):
    model = adapted(backbones["eurobert"])
    st_jv5.fit_heads(
        model, [f"{text} {i}" for i in range(3) for text in real_texts()], hidden=8, steps=5
    )
    with TestClient(create_app(model, [NAME])) as client:
        for task in (*TASKS, BASE, "query"):
            found = vectors_of(post(client, input=texts[:5], task=task, mode="head"))
            wanted = st_jv5.encode(model, texts[:5], task, mode="head")
            np.testing.assert_allclose(found, wanted, atol=ATOL)
        found = vectors_of(post(client, input="a", task="query", mode="head", dimensions=8))
        wanted = st_jv5.encode(model, ["a"], "query", mode="head", dim=8)
        np.testing.assert_allclose(found, wanted, atol=ATOL)
        answer = post(client, input="a", task={"retrieval": 0.5, "base": 0.5}, mode="head")
        assert error_of(answer)["code"] == "no_head"


@pytest.mark.parametrize("dim", [8, 20, 48])
def test_dims_and_types_are_those_of_encode(client, served, texts, dim):
    wanted = st_jv5.encode(served, texts[:3], "text-matching", dim=dim)
    asked = {"input": texts[:3], "task": "text-matching", "dimensions": dim}
    np.testing.assert_allclose(vectors_of(post(client, **asked)), wanted, atol=ATOL)
    for field in ("encoding_format", "embedding_type"):
        rows = post(client, **asked, **{field: "base64"}).json()["data"]
        found = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]
        np.testing.assert_allclose(found, wanted, atol=ATOL)
    if dim % 8 == 0:  # sentence-transformers packs no others
        for kind in ("binary", "ubinary"):
            bits = vectors_of(post(client, **asked, embedding_type=kind))
            np.testing.assert_array_equal(bits, quantize_embeddings(wanted, kind))
    ubinary = vectors_of(post(client, **asked, embedding_type="ubinary")).astype(np.uint8)
    np.testing.assert_array_equal(np.unpackbits(ubinary, axis=1, count=dim), wanted > 0)


def test_one_text_is_a_list_of_one_and_usage_counts_what_the_model_sees(client, served, texts):
    long = " ".join(texts)
    told = post(client, input=long, task="query").json()
    assert told["object"] == "list"
    assert told["model"] == NAME
    assert [row["index"] for row in told["data"]] == [0]
    tokens = int(served.preprocess([long])["attention_mask"].sum())
    assert tokens == served.max_seq_length
    assert told["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    short = served.preprocess(texts[:3], prompt="Document: ", task="base")["attention_mask"]
    asked = post(client, input=texts[:3], task="base").json()
    assert asked["usage"]["total_tokens"] == int(short.sum())


def test_tei_s_form_gives_the_same_vectors(client, served, texts):
    body = {"inputs": texts[:3], "task": "clustering", "normalize": True, "truncate": True}
    answer = client.post("/embed", json=body)
    wanted = st_jv5.encode(served, texts[:3], "clustering")
    np.testing.assert_allclose(answer.json(), wanted, atol=ATOL)
    one = client.post("/embed", json={"inputs": texts[0], "task": "query", "dimensions": 8})
    np.testing.assert_allclose(
        one.json(), st_jv5.encode(served, texts[:1], "query", dim=8), atol=ATOL
    )


LONG = "word " * 100
BAD = {
    "no JSON": (b"{", 400, "invalid_json", None),
    "a list": ([], 400, "invalid_body", None),
    "nothing": ({}, 400, "missing_field", "model"),
    "no input": ({"model": NAME}, 400, "missing_field", "input"),
    "another model": ({"model": "miné", "input": "a"}, 404, "model_not_found", "model"),
    "another task": ({"input": "a", "task": "retreival"}, 400, "unknown_task", "task"),
    "no task": ({"input": "a"}, 400, "missing_task", "task"),
    "a task behind the name": ({"model": f"{NAME}/x", "input": "a"}, 400, "unknown_task", "task"),
    "two tasks": (
        {"model": f"{NAME}/query", "input": "a", "task": "base"},
        *(400, "conflict", "task"),
    ),
    "another prompt": (
        {"input": "a", "task": "base", "prompt_name": "Query"},
        *(400, "unknown_prompt", "prompt_name"),
    ),
    "two prompts": (
        {"input": "a", "task": "retrieval.query", "prompt_name": "document"},
        *(400, "conflict", "prompt_name"),
    ),
    "an empty blend": ({"input": "a", "task": {}}, 400, "unknown_task", "task"),
    "a weight that is none": (
        {"input": "a", "task": {"base": True}},
        *(400, "invalid_value", "task"),
    ),
    "no text": ({"input": [], "task": "base"}, 400, "invalid_value", "input"),
    "a number": ({"input": 7, "task": "base"}, 400, "invalid_value", "input"),
    "a number among texts": ({"input": ["a", 7]}, 400, "invalid_value", "input[1]"),
    "null among texts": ({"input": ["a", "b", None]}, 400, "invalid_value", "input[2]"),
    "half a character": ({"input": ["a", "\ud800"]}, 400, "invalid_value", "input[1]"),
    "half a character alone": ({"input": "\ud800"}, 400, "invalid_value", "input[0]"),
    "half a character in a field": (
        {"input": "a", "\ud800": 1},
        *(400, "unknown_field", "\\ud800"),
    ),
    "no heads": ({"input": "a", "task": "base", "mode": "head"}, 400, "no_head", "mode"),
    "another mode": ({"input": "a", "mode": "heads"}, 400, "invalid_value", "mode"),
    "no dims": ({"input": "a", "dimensions": 0}, 400, "invalid_value", "dimensions"),
    "too many dims": (
        {"input": "a", "task": "base", "dimensions": 49},
        *(400, "invalid_value", "dimensions"),
    ),
    "dims in words": ({"input": "a", "dimensions": "8"}, 400, "invalid_value", "dimensions"),
    "another format": (
        {"input": "a", "encoding_format": "hex"},
        *(400, "invalid_value", "encoding_format"),
    ),
    "two formats": (
        {"input": "a", "encoding_format": "float", "embedding_type": "binary"},
        *(400, "conflict", "embedding_type"),
    ),
    "a misspelt field": ({"input": "a", "dimension": 8}, 400, "unknown_field", "dimension"),
    "late chunking": ({"input": "a", "late_chunking": True}, 400, "invalid_value", "late_chunking"),
    "other lengths": ({"input": "a", "normalized": False}, 400, "invalid_value", "normalized"),
    "too long": (
        {"input": ["a", LONG], "task": "base", "truncate": False},
        *(400, "text_too_long", "input[1]"),
    ),
    "too many texts": ({"input": ["a"] * 65, "task": "base"}, 413, "too_many_texts", "input"),
    "too many bytes": ({"input": "a" * 100_001, "task": "base"}, 413, "too_many_bytes", None),
    "token ids": ({"input": [3, 4], "task": "base"}, 400, "token_ids", "input"),
    "a text among token ids": ({"input": [3, "a"]}, 400, "invalid_value", "input[1]"),
    "no token ids": ({"input": [[3], []]}, 400, "invalid_value", "input[1]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_told_its_fault_in_openai_s_shape(client, kind):
    body, status, code, param = BAD[kind]
    if isinstance(body, dict) and "input" in body:
        body = {"model": NAME, **body}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(
        "/v1/embeddings", content=raw, headers={"Content-Type": "application/json"}
    )
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("field", ["model", "task", "prompt_name", "encoding_format", "blend"])
def test_half_a_character_in_any_field_is_the_client_s_fault(client, field):
    changed = {"task": {"\ud800": 1.0}} if field == "blend" else {field: "\ud800"}
    body = json.dumps({"model": NAME, "input": "a", "task": "base", **changed}).encode()
    answer = client.post(
        "/v1/embeddings", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 404)
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_body_that_comes_in_parts_is_bounded_too(client):
    parts = (b'{"input": "' + b"a" * 20_000 for _ in range(6))
    answer = client.post(
        "/v1/embeddings", content=parts, headers={"Content-Type": "application/json"}
    )
    assert "content-length" not in answer.request.headers
    assert (answer.status_code, error_of(answer)["code"]) == (413, "too_many_bytes")


def test_messages_name_the_way_out(client):
    told = error_of(post(client, input="a", task="retreival"))["message"]
    assert "did you mean 'retrieval'?" in told
    told = error_of(post(client, input="a", dimension=8))["message"]
    assert "did you mean 'dimensions'?" in told
    assert f"{NAME}/TASK" in error_of(post(client, input="a"))["message"]
    told = error_of(post(client, input=[3], task="base"))["message"]
    assert "check_embedding_ctx_length=False" in told


def test_unknown_paths_and_methods_have_the_same_shape(client):
    assert error_of(client.get("/v1/nothing"))["code"] == "not_found"
    assert error_of(client.get("/v1/embeddings"))["code"] in ("not_found", "method_not_allowed")
    assert error_of(client.get("/v1/models/other"))["code"] == "model_not_found"


def test_the_list_of_models_names_each_task(client):
    data = client.get("/v1/models").json()["data"]
    assert [one["id"] for one in data if one["adapter"]] == [f"{NAME}/{t}" for t in [*TASKS, BASE]]
    assert data[0] == client.get(f"/v1/models/{NAME}").json()
    assert client.get(f"/v1/models/{NAME}/query").json()["dimensions"] == 48


def test_a_default_task_serves_requests_that_name_none(served, texts):
    served[0].default_task = "classification"
    try:
        with TestClient(create_app(served, [NAME])) as client:
            found = vectors_of(post(client, input=texts[:2]))
            assert client.get("/v1/models").json()["data"][0]["task"] == "classification"
    finally:
        served[0].default_task = None
    np.testing.assert_allclose(found, st_jv5.encode(served, texts[:2], "classification"), atol=ATOL)


def test_token_ids_of_the_model_s_own_tokenizer_are_their_text(served, texts):
    ids = [served.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[:2]]
    with TestClient(create_app(served, [NAME], token_ids=True)) as client:
        found = vectors_of(post(client, input=ids, task="query"))
        one = vectors_of(post(client, input=ids[0], task="query"))
        beyond = error_of(post(client, input=[ids[0], [10**6]], task="query"))
        huge = error_of(post(client, input=[ids[0], [2**40]], task="query"))
    wanted = st_jv5.encode(served, texts[:2], "query")
    np.testing.assert_allclose(found, wanted, atol=ATOL)
    np.testing.assert_allclose(one, wanted[:1], atol=ATOL)
    assert beyond["param"] == huge["param"] == "input[1]"


def test_a_key_opens_what_is_the_model_s_and_nothing_else_needs_one(served):
    with TestClient(create_app(served, [NAME], keys=["one", "zwö"])) as client:
        for path in ("/", "/page.js", "/health", "/ready", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/v1/embeddings", "/embed"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert error_of(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for key, status in (("one", 200), ("zwö", 200), ("on", 401), ("onee", 401), ("", 401)):
            told = {"Authorization": f"Bearer {key}".encode()}
            assert client.get("/v1/models", headers=told).status_code == status, key
        assert client.get("/v1/models", headers={"Authorization": "one"}).status_code == 401


def test_metrics_count_by_path_status_and_task(served, texts):
    with TestClient(create_app(served, [NAME])) as client:
        post(client, input=texts[:3], task="query")
        post(client, input=[" ".join(texts), "a"], task=BLEND)
        post(client, input="a", task="none")
        told = client.get("/metrics").text
    assert 'st_jv5_requests_total{path="/v1/embeddings",status="200"} 2.0' in told
    assert 'st_jv5_requests_total{path="/v1/embeddings",status="400"} 1.0' in told
    assert 'st_jv5_texts_total{task="retrieval"} 3.0' in told
    assert 'st_jv5_texts_total{task="blend"} 2.0' in told
    assert "st_jv5_texts_cut_total 1.0" in told
    assert "st_jv5_waiting_texts 0.0" in told


def test_the_interface_s_page_asks_no_other_server(client):
    page = client.get("/docs").text
    assert "https://" not in page
    assert "/v1/embeddings" in client.get("/openapi.json").json()["paths"]


def test_texts_are_neither_logged_nor_in_the_answer_when_the_model_fails(
    served, monkeypatch, caplog
):
    secret = "the patient's name"

    def broken(*args, **kwargs):
        raise RuntimeError(f"could not run {secret}")

    caplog.set_level(logging.DEBUG)
    with TestClient(create_app(served, [NAME])) as client:
        monkeypatch.setattr("st_jv5.serve.batcher.encode_mixed", broken)
        answer = post(client, input=secret, task="base")
        monkeypatch.setattr("st_jv5.serve.app.Service._read", broken)
        other = post(client, input=secret, task="base")
    for one in (answer, other):
        assert one.status_code == 500
        assert error_of(one)["type"] == "server_error"
        assert secret not in one.text
    assert "RuntimeError" in caplog.text
    assert secret not in caplog.text
