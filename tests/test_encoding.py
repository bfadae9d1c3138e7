"""Token-budget batches, mixed tasks, all tasks: the vectors of model.encode."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5 import encoding
from st_jv5.task_table import TASKS


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_tokens", [1, 40, None])
def test_batches_by_tokens_give_the_vectors_of_encode(model, texts, side, batch_tokens):
    model.tokenizer.padding_side = side
    expected = model.encode(texts, task="retrieval", prompt_name="query", dim=16)
    found = st_jv5.encode(
        model, texts, task="retrieval", prompt_name="query", dim=16, batch_tokens=batch_tokens
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_texts_are_computed_once_and_long_ones_do_not_pad_short_ones(model, texts):
    seen = []
    model[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]["input_ids"].shape))
    found = st_jv5.encode(model, [*texts[:9], *texts[:9]], task="clustering", batch_tokens=128)
    assert sum(rows for rows, _ in seen) == 9
    assert all(rows == 1 or rows * width <= 128 for rows, width in seen)
    assert np.array_equal(found[:9], found[9:])
    for seen_before in (False, True):  # whatever ran before: the same bits
        again = st_jv5.encode(model, texts[:9], task="clustering", batch_tokens=128)
        assert np.array_equal(again, found[:9]), seen_before


def test_empty_texts_and_spaces_are_defined(model, backbones):
    for text in ("", "   "):
        found = st_jv5.encode(model, [text, "a cat"], task="retrieval")
        np.testing.assert_allclose(found[0], model.encode([text], task="retrieval")[0], atol=1e-6)
        assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-5)
    silent = st_jv5.new_student(backbones["qwen3"], append_eos=False)  # adds no token of its own
    assert st_jv5.encode(silent, [""], prompt_name="document").shape == (1, 48)
    with pytest.raises(ValueError, match=r"'' has no token and so no vector"):
        st_jv5.encode(silent, ["a", ""], prompt="")


def test_inputs_that_would_be_flattened_are_padded_in_this_call_alone(model, texts):
    model[0].can_flatten_inputs = True  # as under flash attention
    preprocess = type(model[0]).preprocess
    shapes = []

    def spy(self, *args, **kwargs):
        features = preprocess(self, *args, **kwargs)
        shapes.append(features["attention_mask"].shape)
        assert model[0].can_flatten_inputs  # for other threads
        return features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model[0]), "preprocess", spy)
        st_jv5.encode(model, texts[:5], task="retrieval")
    assert max(rows for rows, _ in shapes) == 5
    assert model[0].can_flatten_inputs


def test_every_row_of_a_mixed_list_gets_its_own_task(model, texts, monkeypatch):
    tasks = [[*TASKS, "query", "base"][i % 6] for i in range(len(texts))]
    repeated = [*texts[:10], *texts[:10]]
    names = [None] * 10 + ["query"] * 10
    mixed = st_jv5.encode_mixed(model, repeated, ["retrieval"] * 20, prompt_names=names)
    np.testing.assert_allclose(mixed[:10], model.encode(texts[:10], task="retrieval"), atol=1e-6)
    np.testing.assert_allclose(mixed[10:], model.encode(texts[:10], task="query"), atol=1e-6)
    for shared in (0, 10**6):  # a batch per task; one batch, a row each with its adapter
        monkeypatch.setattr("st_jv5.encoding.SHARED_TOKENS", shared)
        found = st_jv5.encode_mixed(model, texts, tasks, batch_tokens=2000)
        for text, task, row in zip(texts, tasks, found, strict=True):
            np.testing.assert_allclose(row, model.encode([text], task=task)[0], atol=1e-5)


def test_all_tasks_are_each_task(model, texts):
    found = st_jv5.encode_all_tasks(model, texts)
    assert list(found) == list(TASKS)
    assert st_jv5.encode_all_tasks(model, [])["clustering"].shape == (0, 48)
    for task, vectors in found.items():
        np.testing.assert_allclose(vectors, model.encode(texts, task=task), atol=1e-6)


def test_bad_requests_are_named(model):
    with pytest.raises(ValueError, match=r"unknown prompt 'quary'.*did you mean 'query'"):
        st_jv5.encode(model, ["x"], task="retrieval", prompt_name="quary")
    with pytest.raises(ValueError, match="batch_tokens must be positive, not 0"):
        st_jv5.encode(model, ["x"], task="retrieval", batch_tokens=0)
    with pytest.raises(ValueError, match="2 texts, 1 tasks and 2 prompt names"):
        st_jv5.encode_mixed(model, ["x", "y"], ["base"])
    with pytest.raises(ValueError, match=r"unknown task 'retreival'"):
        st_jv5.encode_mixed(model, ["x"], ["retreival"])
    with pytest.raises(ValueError, match=r"texts must be str, but text 1 is None"):
        st_jv5.encode(model, ["x", None], task="retrieval")
    with pytest.raises(ValueError, match=r"texts must be a list, not one text; write"):
        st_jv5.encode(model, "x", task="retrieval")


def test_a_vector_that_is_not_finite_is_an_error_with_the_texts_index(model, texts):
    weight = model[0].model.embed_tokens.weight
    token = model.tokenizer("zq", add_special_tokens=False)["input_ids"][0]
    weight.data[token] = float("nan")
    given = ["aa", "bb", "bb", "zq zq", "zq zq"]
    assert token not in model.tokenizer(given[:3])["input_ids"][0]
    for encode in (
        lambda: st_jv5.encode(model, given, task="retrieval"),
        lambda: st_jv5.encode_mixed(model, given, ["clustering", "query", *["base"] * 3]),
        lambda: st_jv5.encode_all_tasks(model, given),
    ):
        with pytest.raises(
            encoding.NotFiniteError, match="text 3 is NaN or infinite: 'zq zq'"
        ) as e:
            encode()
        assert pickle.loads(pickle.dumps(e.value)).index == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pd.Series(["a", "b"]), None),
        (pl.Series(["a", "b"]), None),
        (np.array(["a", "b"]), None),
        ((text for text in "ab"), None),
        (pa.array(["a", "b"]), r"text 0 is .* of type StringScalar; .*to_pylist"),
        (pd.DataFrame({"a": ["a"], "b": ["b"]}), "not DataFrame; pass one column of a table"),
        (pl.DataFrame({"a": ["a"], "b": ["b"]}), "not DataFrame; pass one column of a table"),
        ({"a": 1, "b": 2}, "not dict"),
        ({"a", "b"}, "not set"),
        (b"ab", "not bytes"),
        (["a", ("b" * 200_000, 1)], r"text 1 is \('bbb"),
        (["a", "\ud800"], r"text 1 has half a surrogate pair.*'\\ud800'"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_list_of_texts_is_taken_as_one_or_refused_in_a_line(model, given, said):
    if said is None:
        expected = model.encode(["a", "b"], task="base")
        np.testing.assert_allclose(st_jv5.encode(model, given, task="base"), expected, atol=1e-5)
        return
    with pytest.raises(ValueError, match=said) as error:
        st_jv5.encode(model, given, task="base")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pd.Series(["a", "b"]), r"text 0 of the batch is .* of type Series; pass list"),
        (pl.Series(["a", "b"]), r"text 0 of the batch is .* of type Series; pass list"),
        (pa.array(["a", "b"]), r"text 0 of the batch is .* of type StringArray; .*to_pylist"),
        ((text for text in "ab"), r"text 0 of the batch is .* of type generator; pass list"),
        (["a", ("b" * 200_000, 1)], r"of the batch is \('bbb.* of type tuple"),
        (["a", "\ud800"], r"of the batch has half a surrogate pair"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_models_own_encode_says_what_to_pass(model, given, said):
    with pytest.raises(ValueError, match=said) as error:
        model.encode(given, task="base")
    assert len(str(error.value)) < 300


def test_tasks_and_dims_of_other_types_are_refused_in_words(model):
    for task in (["retrieval"], 3, ("a", "b"), b"query"):
        with pytest.raises(ValueError, match="a task is a name, or a blend's weights by task, not"):
            model.encode(["x"], task=task)
    for dim in ("16", 16.0, True):
        for encode in (model.encode, lambda texts, **how: st_jv5.encode(model, texts, **how)):
            with pytest.raises(ValueError, match=r"dim must be an int in 1..48, not"):
                encode(["x"], task="base", dim=dim)
    assert model.encode(["x"], task="base", dim=np.int64(16)).shape == (1, 16)


def test_more_tokens_than_positions_are_refused_before_the_forward(backbones):
    student = st_jv5.new_student(backbones["bert"])
    student.max_seq_length = 600  # the backbone has 512
    assert student.encode(["short"]).shape == (1, 48)
    with pytest.raises(ValueError, match=r"a text has 600 tokens and this backbone 512 positions"):
        student.encode(["long " * 700])
    student.max_seq_length = 1
    with pytest.raises(ValueError, match="tokens though max_seq_length is 1: the tokenizer adds 2"):
        student.encode(["short"])
    rotary = st_jv5.new_student(backbones["eurobert"])
    rotary.max_seq_length = 600
    assert rotary.encode(["long " * 700]).shape == (1, 48)


def test_padding_is_where_the_tokens_have_it(backbones, texts):
    """A processor's own setting pads in front, whatever its tokenizer says."""
    plain = SentenceTransformer(backbones["qwen3"])
    expected = plain.encode(texts, batch_size=1)
    plain[0].processing_kwargs = {"text": {"padding_side": "left"}}
    assert not plain.preprocess(texts[:4])["attention_mask"][:, 0].all()
    assert plain.tokenizer.padding_side == "right"
    found = st_jv5.encode(plain, texts, batch_tokens=256)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_blocks_that_are_tokenised_ahead_are_the_same(model, texts, monkeypatch):
    expected = st_jv5.encode(model, texts, task="retrieval")
    monkeypatch.setattr(encoding, "BLOCK_TEXTS", 5)
    for threaded in (False, True):
        stock = encoding._ahead
        monkeypatch.setattr(
            encoding, "_ahead", lambda t, b, _, stock=stock, on=threaded: stock(t, b, on)
        )
        found = st_jv5.encode(model, texts, task="retrieval")
        monkeypatch.setattr(encoding, "_ahead", stock)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="broken"):
        list(encoding._ahead(broken, [["a"], ["b"], ["c"]], True))


def broken(texts):
    raise ValueError("broken")
