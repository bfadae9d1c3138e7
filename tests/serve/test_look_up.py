"""A model of a query table, served: queries by look-up, documents by the model."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

import st_jv5
from st_jv5 import cli
from st_jv5.rotation import rotate
from st_jv5.serve.app import create_app
from st_jv5.serve.batcher import Batcher
from tests.conftest import adapted, real_texts
from tests.serve.conftest import ATOL, NAME, post
from tests.serve.test_app import error_of, vectors_of


@pytest.fixture(scope="module")
def fast(backbones, tmp_path_factory) -> SentenceTransformer:
    path = tmp_path_factory.mktemp("fast") / "model"
    model = adapted(backbones["eurobert"])
    st_jv5.fit_query_table(model, real_texts(), epochs=1).save_pretrained(str(path))
    return SentenceTransformer(str(path))


@pytest.fixture(scope="module")
def client(fast):
    with TestClient(create_app(fast, [NAME])) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "looked_up"),
    [
        ({"task": "retrieval.query"}, True),
        ({"model": f"{NAME}/query"}, True),
        ({"task": "retrieval.passage"}, False),
        ({"model": f"{NAME}/document"}, False),
        ({"task": "base"}, False),
        ({}, False),
    ],
)
def test_queries_are_the_table_s_and_all_else_the_model_s(client, fast, texts, asked, looked_up):
    for given in (texts[:5], texts[0]):
        texts_ = [given] if isinstance(given, str) else given
        wanted = (fast.encode_query if looked_up else fast.encode_document)(texts_)
        np.testing.assert_allclose(
            vectors_of(post(client, input=given, **asked)), wanted, atol=ATOL
        )


def test_a_query_does_not_wait_for_the_model_and_is_cut_and_counted_like_others(
    client, fast, texts, monkeypatch
):
    monkeypatch.setattr(Batcher, "submit", None)
    answer = post(client, input=texts[:2], task="retrieval.query", dimensions=8)
    wanted = fast.encode_query(texts[:2], truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(vectors_of(answer), wanted, atol=ATOL)
    tokenizer = fast[0].sub_modules["query"][0].tokenizer
    tokens = [e.ids for e in tokenizer.encode_batch(texts[:2], add_special_tokens=False)]
    assert answer.json()["usage"]["total_tokens"] == sum(map(len, tokens))
    assert 'st_jv5_texts_total{task="query"}' in client.get("/metrics").text
    assert error_of(post(client, input=["a", ""], task="query"))["param"] == "input[1]"
    names = [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert names == [NAME, f"{NAME}/query", f"{NAME}/document", f"{NAME}/base"]


def test_a_default_task_may_be_the_queries_with_a_table_or_without(fast, student, texts):
    for model in (fast, student):
        with TestClient(create_app(model, [NAME], task="query")) as client:
            found = vectors_of(post(client, input=texts[:2]))
        np.testing.assert_allclose(found, model.encode_query(texts[:2]), atol=ATOL)


def test_jina_s_sides_are_those_of_a_model_without_adapters_too(student, texts):
    with TestClient(create_app(student, [NAME])) as client:
        for task, encode in (
            ("retrieval.query", student.encode_query),
            ("retrieval.passage", student.encode_document),
        ):
            found = vectors_of(post(client, input=texts[:2], task=task))
            np.testing.assert_allclose(found, encode(texts[:2]), atol=ATOL)


def test_what_a_server_cannot_do_with_two_encoders_is_told_before_it_starts(
    backbones, student, tmp_path
):
    joined = st_jv5.query_table.fit_query_encoder(student, real_texts(), student)
    joined.save_pretrained(str(tmp_path / "joined"))
    with pytest.raises(SystemExit, match=r"encoded by Transformer, not looked up in a table"):
        cli.main(["serve", str(tmp_path / "joined")])
    model = adapted(backbones["eurobert"])
    rotate(model, real_texts())
    fast = st_jv5.fit_query_table(model, real_texts(), epochs=1)
    with pytest.raises(ValueError, match=r"go through Dense.*unrotate"):
        create_app(fast, [NAME])
