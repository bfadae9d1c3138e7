"""The teacher's vectors on disk, and filling them."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_jv5.teacher import TeacherStore, fill
from tests.conftest import MINILM


@pytest.fixture
def store(tmp_path) -> TeacherStore:
    """Of one shard, so that rows are 0, 1, 2."""
    store = TeacherStore.open(tmp_path / "store", create=True)
    return store.space("big", dim=6, dtype="float32", shards=1)


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_what_is_added_comes_back_in_the_stores_dtype(tmp_path, dtype, exact):
    names, rows = [f"text {i}" for i in range(50)], vectors(50)
    TeacherStore.open(tmp_path, create=True).space("big", dim=6, dtype=dtype).add(names, rows)
    store = TeacherStore.open(tmp_path).space("big", dtype=dtype)
    assert len(store) == 50
    order = [31, 2, 2, 49]
    found = store.gather(store.rows([names[i] for i in order]))
    assert found.dtype == exact
    assert torch.equal(found, rows[order].to(exact))
    assert store.gather(np.array([[0, 1], [2, 3]])).shape == (2, 2, 6)


def test_texts_are_kept_once_and_appended(store):
    rows = vectors(3)
    store.add(["a", "b", "a"], rows)
    store.add(["b", "c"], vectors(2, seed=1))
    assert len(store) == 3
    assert torch.equal(store.gather(store.rows(["a", "b"])), rows[:2])


def test_another_prompt_or_revision_is_another_space(tmp_path):
    store = TeacherStore.open(tmp_path, create=True)
    store.space("big", prompt="", dim=6).add(["a"], vectors(1))
    for other in (
        {"prompt": "topic: "},
        {"revision": "2"},
        {"max_tokens": 9},
        {"dtype": "float32"},
    ):
        space = store.space("big", dim=6, **other)
        assert space.rows(["a"], missing_ok=True).tolist() == [-1]
    assert len(store.spaces()) == 5


def test_missing_texts_are_counted_and_shown(store):
    store.add(["a"], vectors(1))
    with pytest.raises(KeyError, match=r"4 of 5 texts have no vector.*\['x1', 'x2', 'x3'\]"):
        store.rows(["a", "x1", "x2", "x3", "x4"])
    assert store.rows(["x", "a"], missing_ok=True).tolist() == [-1, 0]


def test_broken_vectors_are_refused_with_their_text(store):
    for broken in (float("nan"), float("inf"), 0.0):
        rows = vectors(2)
        rows[1] = broken
        with pytest.raises(ValueError, match=r"text 1 is NaN, infinite or zero.*'the bad one'"):
            store.add(["fine", "the bad one"], rows)
    assert len(store) == 0
    with pytest.raises(ValueError, match=r"shape \(1, 6\), not \(1, 7\)"):
        store.add(["a"], torch.ones(1, 7))
    with pytest.raises(ValueError, match="text 0 is None"):
        store.add([None], vectors(1))


def test_rows_beyond_the_end_are_refused(store):
    store.add(["a"], vectors(1))
    for row in (-1, 1):
        with pytest.raises(IndexError, match="1 of 1 rows are not in"):
            store.gather([row])


def test_what_a_killed_writer_left_does_not_exist_and_is_overwritten(store):
    rows = vectors(4)
    store.add(["a", "b"], rows[:2])
    with (store.path / "000.vectors").open("ab") as file:
        file.write(b"half a vector")
    again = TeacherStore(store.folder, store.key)
    assert len(again) == 2
    again.add(["c", "d"], rows[2:])
    assert torch.equal(again.gather(again.rows(["a", "b", "c", "d"])), rows)


def test_a_store_that_is_not_there_and_a_space_without_a_width_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="create=True"):
        TeacherStore.open(tmp_path / "no")
    store = TeacherStore.open(tmp_path, create=True)
    with pytest.raises(ValueError, match="pass dim= to start it"):
        store.space("big")
    with pytest.raises(ValueError, match="choose a space first"):
        store.add(["a"], vectors(1))


def test_filling_gives_the_teachers_vectors_and_goes_on_after_a_stop(tmp_path, texts, monkeypatch):
    teacher = SentenceTransformer(MINILM)
    texts = texts[:24]
    store = TeacherStore.open(tmp_path, create=True)
    store = store.space("minilm", prompt="say: ", max_tokens=32, dim=384)
    module = importlib.import_module("st_jv5.teacher.fill")
    encode, calls = module.encode, []

    def stop_at_the_second_chunk(model, chunk, **kwargs):
        calls.append(chunk)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(model, chunk, **kwargs)

    monkeypatch.setattr(module, "encode", stop_at_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        fill(store, teacher, [*texts, *texts], chunk_texts=10)
    assert len(store) == 10
    monkeypatch.setattr(module, "encode", encode)
    assert fill(store, teacher, texts, chunk_texts=10) == 14
    assert fill(store, teacher, texts) == 0
    teacher.max_seq_length = 32
    expected = teacher.encode(texts, prompt="say: ")
    found = store.gather(store.rows(texts)).float().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
