"""Queries that are looked up, and a small model's queries, on a large model's documents."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer

import st_jv5
from st_jv5 import query_table
from st_jv5.query_table import remember_words
from tests.conftest import MINILM, adapted, real_texts

DOCUMENTS = real_texts(12)


@pytest.fixture(scope="module")
def queries() -> list[str]:
    cut = [text[at : at + 24].strip() for text in real_texts() for at in range(0, len(text), 12)]
    return [text for text in cut if text]


def stock(folder: str) -> SentenceTransformer:
    transformer = Transformer(folder)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(
        modules=[transformer, pooling, Normalize()],
        prompts={"query": "find: ", "document": "text: "},
        device="cpu",
    )


@pytest.fixture(scope="module")
def ours(backbones) -> SentenceTransformer:
    return adapted(backbones["eurobert"])


@pytest.fixture(scope="module")
def fast(ours, queries) -> SentenceTransformer:
    return st_jv5.fit_query_table(ours, queries, batch_size=64, learning_rate=0.02)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    dots = (one * other).sum(axis=1)
    return float((dots / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).mean())


def test_documents_are_those_of_the_models_retrieval_adapter(ours, fast):
    own = ours.encode(DOCUMENTS, task="retrieval", prompt_name="document")
    for found in (fast.encode_document(DOCUMENTS), fast.encode(DOCUMENTS)):
        np.testing.assert_allclose(found, own, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
def test_documents_of_a_stock_model_are_the_same_to_the_bit(architecture, backbones, queries):
    model = stock(backbones[architecture])
    before = model.encode_document(DOCUMENTS)
    fast = st_jv5.fit_query_table(model, queries[:40], epochs=1)
    np.testing.assert_array_equal(fast.encode_document(DOCUMENTS), before)
    np.testing.assert_array_equal(model.encode_document(DOCUMENTS), before)


def test_queries_come_near_the_models_own_and_nearer_with_training(ours, fast, queries):
    own = ours.encode_query(queries)
    begun = st_jv5.fit_query_table(ours, queries, epochs=1, learning_rate=1e-9)
    start, end = (cosine(one.encode_query(queries), own) for one in (begun, fast))
    assert start + 0.1 < end > 0.75


def test_the_query_prompt_is_learned_and_no_longer_put_before_a_query(backbones, queries):
    model = stock(backbones["bert"])
    own = model.encode_query(queries)
    fast = st_jv5.fit_query_table(model, queries, batch_size=64, learning_rate=0.02)
    assert fast.prompts == {"query": "", "document": "text: "}
    assert cosine(fast.encode_query(queries), own) > 0.9


def test_a_query_is_the_unit_mean_of_its_tokens_rows(fast):
    table = fast[0].sub_modules["query"][0]
    ids = table.tokenizer.encode("a city in France", add_special_tokens=False).ids
    mean = table.embedding.weight[ids].mean(dim=0)
    expected = (mean / mean.norm()).detach().numpy()
    np.testing.assert_allclose(fast.encode_query("a city in France"), expected, atol=1e-6)


def test_saved_with_stock_modules_alone_it_reloads_to_the_same_vectors(fast, tmp_path, queries):
    fast.save_pretrained(str(tmp_path))
    told = [*tmp_path.rglob("modules.json"), *tmp_path.rglob("router_config.json")]
    assert len(told) == 2
    assert not any("st_jv5" in path.read_text(encoding="utf-8") for path in told)
    again = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(again.encode_query(queries), fast.encode_query(queries))
    np.testing.assert_array_equal(again.encode_document(DOCUMENTS), fast.encode_document(DOCUMENTS))


def test_alone_or_in_a_batch_of_any_size_a_query_has_one_vector(fast, queries):
    whole = fast.encode_query(queries[:20], batch_size=64)
    for size in (1, 7):
        found = fast.encode_query(queries[:20], batch_size=size)
        np.testing.assert_allclose(found, whole, atol=1e-6)


def test_tokens_that_no_query_had_are_finite_and_an_empty_query_is_zero(backbones):
    model = adapted(backbones["bert"])
    fast = st_jv5.fit_query_table(model, ["one small city", "a large town"], epochs=1)
    seen, new, empty = fast.encode_query(["a small town", "☃ 雪 Ω", ""])
    np.testing.assert_allclose([np.linalg.norm(seen), np.linalg.norm(new)], 1, atol=1e-5)
    assert not empty.any()


def test_a_long_query_is_cut_where_the_model_cuts_it(ours, fast):
    most = ours.max_seq_length
    words = " ".join(["city"] * most + ["river"] * 50)
    table = fast[0].sub_modules["query"][0]
    (cut,) = table.tokenizer.encode_batch([words], add_special_tokens=False)
    assert len(cut.ids) == most
    np.testing.assert_allclose(
        fast.encode_query(words), fast.encode_query(" ".join(["city"] * most)), atol=1e-6
    )


def test_one_seed_gives_one_table_and_repeats_of_a_query_change_nothing(ours, queries):
    one, other, third = (
        st_jv5.fit_query_table(ours, texts, epochs=1, batch_size=16, seed=seed)
        for texts, seed in ((queries[:60], 0), (queries[:60] * 2, 0), (queries[:60], 1))
    )
    found = [each.encode_query(queries[:60]) for each in (one, other, third)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_model_is_left_as_it_was(backbones, queries):
    model = adapted(backbones["bert"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    needs = [parameter.requires_grad for parameter in model.parameters()]
    tokenizer = model.tokenizer.backend_tokenizer.to_str()
    st_jv5.fit_query_table(model, queries[:40], epochs=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert model.tokenizer.backend_tokenizer.to_str() == tokenizer


def test_a_model_in_bfloat16_gets_a_table_in_float32(backbones, queries):
    model = adapted(backbones["eurobert"]).bfloat16()
    fast = st_jv5.fit_query_table(model, queries[:40], epochs=1)
    assert fast.encode_query(queries[:4], convert_to_tensor=True).dtype == torch.float32
    assert fast.encode_document(DOCUMENTS[:2], convert_to_tensor=True).dtype == torch.bfloat16


def test_each_task_has_a_table_of_its_own_and_a_blend_too(ours, queries):
    for task in ("clustering", "base", {"retrieval": 0.5, "clustering": 0.5}):
        fast = st_jv5.fit_query_table(ours, queries[:40], task=task, epochs=1)
        own = ours.encode(DOCUMENTS, task=task, prompt_name="document")
        np.testing.assert_allclose(fast.encode_document(DOCUMENTS), own, atol=1e-6)


def test_weights_that_are_not_for_commerce_stay_so(ours, queries, tmp_path, monkeypatch):
    monkeypatch.setattr(ours[0].licenses, "base", {"some/model": "cc-by-nc-4.0"})
    fast = st_jv5.fit_query_table(ours, queries[:40], epochs=1)
    fast.save_pretrained(str(tmp_path))
    assert "license: cc-by-nc-4.0" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("queries", "settings", "message"),
    [
        ([], {}, "no query has a token, of 0"),
        (["", ""], {}, "no query has a token, of 1"),
        ("a cat", {}, "texts must be a list"),
        (["a cat", None], {}, "text 1 is None"),
        (["a cat"], {"task": "retreival"}, "unknown task 'retreival'"),
        (["a cat"], {"epochs": 0}, "epochs must be at least 1, not 0"),
        (["a cat"], {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (["a cat"], {"learning_rate": 0}, "learning_rate must be above 0, not 0"),
    ],
)
def test_what_cannot_be_fitted_is_told(ours, queries, settings, message):
    with pytest.raises(ValueError, match=message):
        st_jv5.fit_query_table(ours, queries, **settings)


def test_a_stock_model_knows_no_task(backbones):
    with pytest.raises(
        ValueError, match="a model of Transformer has no tasks; leave out task='retrieval'"
    ):
        st_jv5.fit_query_table(stock(backbones["bert"]), ["a cat"], task="retrieval")


# ------------------------------------------------------------------------------------------ words


HOSTILE = [
    "a  cat,\tand\na dog",
    " lead",
    "",
    " ",
    "caf\u00e9 na\u00efve cafe\u0301",
    "\u96ea\u306e \u57ce, x\u96eay",
    "zero\u200bwidth \u00a0nbsp\x00null\x1cfs",
    "[MASK] a [SEP]b [UNK]",
    "don't e.g. C++ _x_ 3.14",
    "word " * 700,
    "x" * 300,
    "\u2603 \U0001f600 a\u2028b",
]


@pytest.fixture
def stock_table() -> SentenceTransformer:
    tokenizer = Tokenizer.from_file(f"{MINILM}/tokenizer.json")
    tokenizer.enable_truncation(256)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def test_remembered_words_change_no_id_of_any_text_seen_or_new(stock_table):
    tokenizer = stock_table[0].tokenizer
    expected = [one.ids for one in tokenizer.encode_batch(HOSTILE, add_special_tokens=False)]
    remember_words(stock_table)
    for _ in range(2):
        assert [one.ids for one in stock_table[0].tokenizer.encode_batch(HOSTILE)] == expected


def test_a_memory_of_words_is_bounded_pickled_and_not_saved(stock_table, monkeypatch, tmp_path):
    monkeypatch.setattr(query_table, "MOST_WORDS", 3)
    before = stock_table.encode(HOSTILE)
    remember_words(stock_table)
    remember_words(stock_table)
    copy = pickle.loads(pickle.dumps(stock_table))
    for model in (stock_table, copy):
        np.testing.assert_array_equal(model.encode(HOSTILE), before)
        assert len(model[0].tokenizer.known) == 3
    stock_table.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert isinstance(again[0].tokenizer, Tokenizer)
    np.testing.assert_array_equal(again.encode(HOSTILE), before)


def test_words_are_remembered_only_where_spaces_part_them(fast, ours):
    assert isinstance(fast[0].sub_modules["query"][0].tokenizer, Tokenizer)  # a byte-level BPE
    with pytest.raises(ValueError, match="does not split texts at spaces"):
        remember_words(fast)
    with pytest.raises(ValueError, match="encoded by AdapterRouter, not looked up"):
        remember_words(ours)


# -------------------------------------------------------------------------------- a small encoder


def test_an_encoder_of_the_same_space_up_to_a_map_gives_the_models_queries(backbones, queries):
    """The encoder is the model itself, so the map is exact: the identity."""
    large, small = (stock(backbones["bert"]) for _ in range(2))
    joined = st_jv5.fit_query_encoder(large, queries, small)
    np.testing.assert_allclose(joined.encode_query(queries), large.encode_query(queries), atol=1e-3)
    np.testing.assert_array_equal(
        joined.encode_document(DOCUMENTS), large.encode_document(DOCUMENTS)
    )


def test_an_encoder_keeps_its_own_adapter_and_prompt_and_is_saved_whole(
    ours, backbones, queries, tmp_path: Path
):
    joined = st_jv5.fit_query_encoder(
        stock(backbones["bert"]), queries, ours, encoder_task="clustering"
    )
    joined.save_pretrained(str(tmp_path))
    routes = json.loads((tmp_path / "router_config.json").read_text(encoding="utf-8"))["structure"]
    assert [name.split("_")[-1] for name in routes["query"]] == [
        "Transformer", "Pooling", "Normalize", "Normalize", "Dense", "Normalize",
    ]  # fmt: skip
    again = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(
        again.encode_query(queries[:9]), joined.encode_query(queries[:9]), atol=1e-6
    )


def test_an_encoder_in_half_precision_or_set_to_cut_is_whole(backbones, queries):
    large, small = stock(backbones["bert"]), stock(backbones["bert"]).bfloat16()
    small.truncate_dim = 8
    joined = st_jv5.fit_query_encoder(large, queries, small)
    own = large.encode_query(queries)
    assert cosine(joined.encode_query(queries), own) > 0.99
    assert small.truncate_dim == 8


def test_an_encoder_needs_more_queries_than_dims(ours):
    with pytest.raises(ValueError, match="1 queries cannot fit a map of 48 dims; pass more"):
        st_jv5.fit_query_encoder(ours, ["a cat"], ours)
