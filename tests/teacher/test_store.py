"""The teacher's vectors on disk."""

from __future__ import annotations

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from st_jv5.teacher import TeacherStore
from st_jv5.teacher import shard as module
from st_jv5.teacher.shard import halves, hash_texts, shard_of


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


# ----------------------------------------------------------------------------- shards, processes


@pytest.fixture
def sharded(tmp_path) -> TeacherStore:
    """The default number of shards, 200 texts."""
    store = TeacherStore.open(tmp_path / "sharded", create=True).space("big", dim=6)
    store.add(NAMES, vectors(200))
    return store


NAMES = [f"text {i}" for i in range(200)]


def test_rows_stay_what_they_are_when_others_are_added(sharded):
    before = sharded.rows(NAMES)
    assert sharded.shards == 16
    assert len(set(before.tolist())) == 200
    assert set((before % 16).tolist()) == set(range(16))
    sharded.add([f"more {i}" for i in range(300)], vectors(300, seed=1))
    assert np.array_equal(sharded.rows(NAMES), before)
    assert torch.equal(sharded.gather(before), vectors(200).half())


def test_a_texts_hash_alone_decides_its_shard(tmp_path, sharded):
    other = TeacherStore.open(tmp_path / "other", create=True).space("big", dim=6)
    other.add(NAMES[::-1], vectors(200))
    assert np.array_equal(other.rows(NAMES) % 16, sharded.rows(NAMES) % 16)
    numbers = shard_of(hash_texts([f"text {i}" for i in range(20_000)]), 16)
    assert np.bincount(numbers.astype(int), minlength=16).min() > 20_000 / 16 * 0.85
    high, _ = halves(hash_texts(NAMES))
    order = np.argsort(high)
    assert (np.diff(shard_of(hash_texts(NAMES), 16)[order].astype(int)) >= 0).all()


def test_readers_see_what_another_writer_adds(sharded):
    reader = TeacherStore(sharded.folder, sharded.key)
    assert reader.rows(["new"], missing_ok=True).tolist() == [-1]
    reader.gather(reader.rows(NAMES))
    sharded.add(["new"], vectors(1, seed=3))
    row = sharded.rows(["new"])
    assert torch.equal(reader.gather(row), vectors(1, seed=3).half())  # though it had mapped less
    assert np.array_equal(reader.rows(["new"]), row)
    assert len(reader) == 201


def test_a_store_that_was_removed_and_made_anew_is_read_anew(store):
    store.add(["a", "b", "c"], vectors(3))
    store.gather(store.rows(["c"]))
    shutil.rmtree(store.path)
    again = TeacherStore(store.folder).space("big", dim=6, dtype="float32", shards=1)
    again.add(["c"], vectors(1, seed=5))
    assert len(store) == 1
    assert torch.equal(store.gather(store.rows(["c"])), vectors(1, seed=5))


def test_a_store_travels_to_other_processes_and_threads(sharded):
    rows, expected = sharded.rows(NAMES), sharded.gather(sharded.rows(NAMES))
    for other in (pickle.loads(pickle.dumps(sharded)), copy.deepcopy(sharded)):
        assert torch.equal(other.gather(rows), expected)
    fresh = TeacherStore(sharded.folder, sharded.key)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda part: fresh.gather(part), np.array_split(rows, 50)))
    assert torch.equal(torch.cat(parts), expected)


def test_threads_may_add_at_once(sharded):
    names = [[f"{thread} {i}" for i in range(20)] for thread in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda part: sharded.add(part, vectors(20)), names))
    for part in names:
        assert torch.equal(sharded.gather(sharded.rows(part)), vectors(20).half())


def test_rows_of_minus_one_give_nan_where_that_is_allowed(sharded):
    rows = sharded.rows(NAMES[:4]).reshape(2, 2)
    rows[1, 0] = -1
    found = sharded.gather(torch.from_numpy(rows), missing_ok=True)
    assert found.shape == (2, 2, 6)
    assert torch.isnan(found).all(dim=-1).tolist() == [[False, False], [True, False]]
    assert torch.equal(found[1, 1], vectors(200)[3].half())
    with pytest.raises(IndexError, match="1 of 4 rows are not in"):
        sharded.gather(rows)
    assert sharded.gather([-1], missing_ok=True).isnan().all()
    assert sharded.gather([]).shape == (0, 6)


def test_a_write_that_breaks_off_leaves_nothing(store, monkeypatch):
    store.add(["a"], vectors(1))
    for stage in ("open", "write_json"):
        with monkeypatch.context() as patch:
            if stage == "write_json":
                patch.setattr(module, "write_json", _break)
            else:
                patch.setattr(module.os, "fsync", _break)
            with pytest.raises(KeyboardInterrupt):
                store.add(["b", "c"], vectors(2, seed=1))
        for reader in (store, TeacherStore(store.folder, store.key)):
            assert len(reader) == 1
            assert reader.rows(["b", "a"], missing_ok=True).tolist() == [-1, 0]
    store.add(["c", "b"], vectors(2, seed=2))
    assert torch.equal(store.gather(store.rows(["c", "b"])), vectors(2, seed=2))


def _break(*args: object) -> None:
    raise KeyboardInterrupt


def test_files_that_were_cut_are_refused(store):
    store.add(["a", "b"], vectors(2))
    path = store.path / "000.vectors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"000.vectors has 47 bytes, but its 2 rows need 48"):
        len(TeacherStore(store.folder, store.key))
    (store.path / "000.json").write_text('{"rows": "many"}')
    with pytest.raises(ValueError, match=r"000.json: rows must be a number >= 0, not 'many'"):
        len(TeacherStore(store.folder, store.key))


def test_bytes_on_disk_are_the_vectors_and_a_hash_each(tmp_path):
    store = TeacherStore.open(tmp_path, create=True).space("wide", dim=768)
    names = [f"text {i}" for i in range(3000)]
    store.add(names, torch.randn(len(names), 768))
    size = sum(path.stat().st_size for path in store.path.iterdir())
    assert 1 < size / (2 * 768 * len(names)) < 1.03


def test_what_two_spaces_share_is_never_mixed_up(tmp_path):
    store = TeacherStore.open(tmp_path, create=True)
    one = store.space("org/Big Model", dim=6, pooling="mean")
    other = store.space("org/Big Model", dim=6, pooling="lasttoken", shards=3)
    assert one.path != other.path
    assert one.path.name.startswith("Big-Model-")
    assert store.space("../..", dim=6).path.parent == tmp_path
    assert store.space("org/Big Model", pooling="lasttoken").shards == 3
    with pytest.raises(ValueError, match="has 3 shards, not 4; write a store with another number"):
        store.space("org/Big Model", pooling="lasttoken", shards=4)
    store.space("org/Big Model", dim=7, pooling="mean")
    with pytest.raises(ValueError, match="in several widths; pass dim="):
        store.space("org/Big Model", pooling="mean")
    for wrong, message in (
        ({"dtype": "int8"}, "dtype must be one of float16, float32, bfloat16, not 'int8'"),
        ({"max_tokens": 0}, "max_tokens must be positive, not 0"),
        ({"shards": 0}, r"shards must lie in 1..1000, not 0"),
        ({"dim": -1}, "dim must be positive, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            store.space(**{"teacher": "x", "dim": 6, **wrong})


def test_spaces_of_another_format_are_told_and_left_alone(tmp_path, caplog):
    store = TeacherStore.open(tmp_path, create=True)
    store.space("new", dim=6)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "space.json").write_text('{"space": {"teacher": "old"}}')
    assert [space.teacher for space in store.spaces()] == ["new"]
    assert "has format 1, this st_jv5 reads 2: not used" in caplog.text
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "space.json").write_text('{"format": 2, "shards": 1, "space": {"x": 1}}')
    with pytest.raises(ValueError, match="must describe its space by dim, dtype, max_tokens"):
        store.spaces()
