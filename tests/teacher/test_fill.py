"""Filling a store: the plan, what is refused, kills, several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_jv5.teacher import FunctionTeacher, LocalTeacher, TeacherStore, fill
from st_jv5.teacher.filling import fills, missing_by_shard
from st_jv5.teacher.shard import halves, hash_texts, shard_of
from st_jv5.teacher.shard_writer import fill_shard
from st_jv5.teacher.sources import as_teacher, resolve_model
from tests.conftest import MINILM
from tests.teacher.fill_worker import CHUNK_TEXTS, run, space

NAMES = [f"text {i}" for i in range(100)]


def lengths(texts: list[str]) -> np.ndarray:
    """A teacher of three dims."""
    return np.array([[len(text), 1.0, sum(map(ord, text)) % 97] for text in texts])


def small(folder: Path, **key) -> TeacherStore:
    return TeacherStore.open(folder, create=True).space("f", dim=3, **{"shards": 4, **key})


def vectors(store: TeacherStore, texts: list[str]) -> np.ndarray:
    return store.gather(store.rows(texts)).float().numpy()


def test_the_plan_is_every_missing_text_once_in_the_order_of_hashes(tmp_path):
    store = small(tmp_path)
    store.add(NAMES[:10], lengths(NAMES[:10]))
    plan = [(number, part[:]) for number, part in missing_by_shard(store, [*NAMES, *NAMES[::-1]])]
    assert sorted(text for _, part in plan for text in part) == sorted(NAMES[10:])
    for number, part in plan:
        hashes = hash_texts(part)
        assert set(shard_of(hashes, 4).tolist()) == {number}
        assert part == sorted(part, key=lambda text: hash_texts([text]).tobytes())
        assert (np.diff(halves(hashes)[0].astype(float)) > 0).all()
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    assert plan == [(number, part[:]) for number, part in missing_by_shard(store, shuffled)]


def test_filling_gives_the_models_vectors_cut_at_max_tokens_behind_the_prompt(tmp_path, texts):
    teacher = SentenceTransformer(MINILM)
    store = TeacherStore.open(tmp_path, create=True)
    store = store.space("minilm", prompt="say: ", max_tokens=32, dim=384)
    assert fill(store, teacher, [*texts, *texts]) == len(texts)
    assert fill(store, teacher, texts) == 0
    assert teacher.max_seq_length == 256  # as it was
    teacher.max_seq_length = 32
    expected = teacher.encode(texts, prompt="say: ")
    np.testing.assert_allclose(vectors(store, texts), expected, atol=1e-3)


def test_a_stopped_run_keeps_whole_chunks_and_the_next_does_the_rest(tmp_path):
    store, calls = small(tmp_path, shards=1), []

    def stop_at_the_third(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        if len(calls) == 4:  # the first asks for the width
            raise KeyboardInterrupt
        return lengths(texts)

    with pytest.raises(KeyboardInterrupt):
        fill(store, stop_at_the_third, NAMES, chunk_texts=30)
    assert len(store) == 60
    assert [line["texts"] for line in fills(store)] == [60]
    assert fill(store, lengths, NAMES, chunk_texts=30) == 40
    np.testing.assert_array_equal(vectors(store, NAMES), lengths(NAMES))
    whole = small(tmp_path / "whole", shards=1)
    asked = []
    fill(whole, lambda texts: (asked.append(texts), lengths(texts))[1], NAMES, chunk_texts=30)
    assert asked[1:3] == calls[1:3]  # the very batches of a run that is not stopped


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda texts: np.ones((len(texts), 5)), "the teacher gives 5 dims, but the space has 3"),
        (
            lambda texts: [[1.0, 1.0, np.nan if "7" in text else 1.0] for text in texts],
            r"NaN, infinite or zero as float16: 'text \d*7\d*'",
        ),
        (lambda texts: np.zeros((len(texts), 3)), r"NaN, infinite or zero as float16: 'text \d+'"),
        (lambda texts: np.full((len(texts), 3), 1e5), "infinite or zero as float16"),
        (
            lambda texts: [[1.0] * (2 if "7" in text else 3) for text in texts],
            r"gave 2 dims for 'text \d*7\d*', but 3 for others",
        ),
        (lambda texts: np.ones((1, 3)), r"gave 1 vectors for 25 texts, the first 'text \d+'"),
        (lambda texts: None, r"gave NoneType for \d+ texts, the first '(dim|text \d+)'"),
        (lambda texts: "abc", r"gave str for \d+ texts"),
        (lambda texts: {"a": 1}, r"gave dict for \d+ texts"),
        (
            lambda texts: np.ones(len(texts)),
            r"gave np.float64\(1.0\) for 'dim'; a teacher gives vectors",
        ),
        (lambda texts: [1.0] * len(texts), "gave 1.0 for 'dim'; a teacher gives vectors"),
        (lambda texts: [None] * len(texts), "gave None for 'dim'"),
        (
            lambda texts: [[1.0, 1.0, "x" if "7" in text else 1.0] for text in texts],
            r"gave \[1.0, 1.0, 'x'\] for 'text \d*7\d*'",
        ),
        (
            lambda texts: np.array([[None] * 3 if "7" in t else [1.0] * 3 for t in texts]),
            r"gave array\(\[None.* for 'text \d*7\d*'",
        ),
        (lambda texts: np.ones((len(texts), 3, 1)), "for 'dim'; a teacher gives vectors"),
        ("all-MiniLM", "must be a SentenceTransformer, a LocalTeacher, an EndpointTeacher"),
    ],
)
def test_what_gives_no_vectors_stops_with_the_reason_and_the_text(tmp_path, teacher, message):
    store = small(tmp_path)
    with pytest.raises(ValueError, match=message):
        fill(store, teacher, NAMES)
    assert len(store) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "spark"}, "engine must be one of local, ray, not 'spark'"),
        ({"chunk_texts": 0}, "chunk_texts must be positive, not 0"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0..1, not 2"),
        ({"world_size": 5}, "5 processes cannot fill 4 shards at once"),
        ({"engine": "ray", "workers": 9}, "9 processes cannot fill 4 shards"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fill(small(tmp_path), lengths, NAMES, **settings)


def test_a_function_may_give_tensors(tmp_path):
    store = small(tmp_path)
    assert fill(store, lambda texts: torch.from_numpy(lengths(texts)).bfloat16(), NAMES[:9]) == 9
    assert store.gather(store.rows(["text 0"]))[0, 0] == 6


def test_texts_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match="text 2 is None"):
        fill(small(tmp_path), lengths, ["a", "b", None])
    with pytest.raises(ValueError, match="text 0 has half a surrogate pair"):
        fill(small(tmp_path), lengths, ["\ud800"])


def test_a_second_try_at_a_planned_shard_does_the_rest_alone(tmp_path):
    store, asked = small(tmp_path, shards=1), []

    def breaks_once(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        if len(asked) == 2:
            raise OSError("a worker dies")
        return lengths(texts)

    ((number, plan),) = missing_by_shard(store, NAMES)
    settings = (number, plan, None, 40, lambda count: None)
    with pytest.raises(OSError, match="a worker dies"):
        fill_shard(store, FunctionTeacher(breaks_once), *settings)
    assert fill_shard(store, FunctionTeacher(breaks_once), *settings) == 60
    assert [len(texts) for texts in asked] == [40, 40, 40, 20]
    assert asked[1] == asked[2] == plan[40:80]
    assert len(store) == len(NAMES)


def test_ranks_fill_their_shards_and_together_the_whole(tmp_path):
    alone, shared = small(tmp_path / "alone"), small(tmp_path / "shared")
    fill(alone, lengths, NAMES, chunk_texts=7)
    counts = [fill(shared, lengths, NAMES, rank=r, world_size=3, chunk_texts=7) for r in range(3)]
    assert sum(counts) == len(NAMES)
    assert min(counts) > 0
    assert files(alone) == files(shared)


def test_a_second_writer_of_a_shard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["st_jv5.teacher.shard_writer"], "LOCK_SECONDS", 0.1)
    store = small(tmp_path, shards=1)
    with (
        TeacherStore(store.folder, store.key).writing(0),
        pytest.raises(ValueError, match=r"shard 0 of .* is being written by another process"),
    ):
        fill(store, lengths, NAMES)
    assert fill(store, lengths, NAMES) == len(NAMES)


def test_a_log_is_told_how_far_it_is(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sys.modules["st_jv5.teacher.filling"], "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level("INFO"):
        fill(small(tmp_path, shards=1), lengths, NAMES, chunk_texts=60)
    told = [record.message for record in caplog.records if "minutes left" in record.message]
    assert told == [
        "teacher: 60 of 100 texts, about 0 minutes left",
        "teacher: 100 of 100 texts, about 0 minutes left",
    ]


def test_another_precision_in_one_space_is_told(tmp_path, caplog):
    store = TeacherStore.open(tmp_path, create=True).space("minilm", dim=384)
    fill(store, LocalTeacher(MINILM), ["a cat"])
    assert not caplog.records
    fill(store, LocalTeacher(MINILM, dtype="bfloat16"), ["a dog"])
    (record,) = caplog.records
    assert "was filled by forwards in float32, and now in bfloat16" in record.message
    assert [line["forwards"] for line in fills(store)] == ["float32", "bfloat16"]


# --------------------------------------------------------------------------------- local teachers


def test_a_teacher_is_loaded_in_the_dtype_and_pooling_asked_for(tmp_path, backbones, texts):
    plain = backbones["qwen3"]  # no pooling of its own: the mean is taken
    expected = SentenceTransformer(modules=[Transformer(plain), Pooling(48, "lasttoken")])
    store = TeacherStore.open(tmp_path, create=True)
    store = store.space("q", dim=48, max_tokens=32, dtype="float32", pooling="lasttoken")
    fill(store, LocalTeacher(plain, pooling="lasttoken"), texts[:8])
    expected.max_seq_length = 32
    np.testing.assert_allclose(vectors(store, texts[:8]), expected.encode(texts[:8]), atol=1e-5)
    half = LocalTeacher(plain, dtype="bfloat16", pooling="lasttoken")
    assert half.model.dtype == torch.bfloat16
    assert half.describe()["forwards"] == "bfloat16"
    cosines = torch.cosine_similarity(
        torch.from_numpy(half.embed(texts[:8], store.key)),
        torch.from_numpy(vectors(store, texts[:8])),
    )
    assert cosines.min() > 0.999


def test_local_teachers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"dtype must be one of .* not 'int4'"):
        LocalTeacher(MINILM, dtype="int4")
    with pytest.raises(ValueError, match="apply only to a model that is still"):
        LocalTeacher(SentenceTransformer(MINILM), pooling="cls")
    with pytest.raises(ValueError, match="pip install no-such-thing"):
        resolve_model("package:no_such_thing/x")
    assert as_teacher(SentenceTransformer(MINILM)).dim() == 384


# ------------------------------------------------------------------------------------------ kills


def files(store: TeacherStore) -> dict[str, bytes]:
    """The bytes that count."""
    kinds = ("*.vectors", "*.hashes", "*.json")
    return {path.name: path.read_bytes() for kind in kinds for path in store.path.glob(kind)}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_a_killed_filling_ends_with_the_bytes_of_an_unbroken_one(
    processes, backbones, tmp_path, texts, kills
):
    seed = random.SystemRandom().randrange(10**6)
    draw, killed = random.Random(seed), []
    texts = [f"{text} {i}" for i in range(4) for text in texts]
    paths = {name: str(tmp_path / name) for name in ("unbroken", "killed")}

    def start(name: str) -> multiprocessing.Process:
        child = processes.Process(target=run, args=(backbones["bert"], texts, paths[name]))
        child.start()
        return child

    while len(killed) < kills:
        child, begin = start("killed"), len(space(paths["killed"]))
        step = max(1, (len(texts) - 3 * CHUNK_TEXTS) // kills // 2)
        target, deadline = begin + draw.randint(1, step), time.monotonic() + 120
        while len(space(paths["killed"])) < target and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)  # anywhere in a chunk, or in the middle of a write
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"ended before it was killed: {child.exitcode}"
        killed.append(len(space(paths["killed"])))
    told = f"seed {seed}, killed at {killed} of {len(texts)}"
    for name in paths:
        child = start(name)
        child.join(timeout=120)
        assert child.exitcode == 0, told
    unbroken, resumed = (space(path) for path in paths.values())
    one, other = (store.gather(store.rows(texts)) for store in (unbroken, resumed))
    assert torch.equal(one.view(torch.int16), other.view(torch.int16)), told
    assert np.array_equal(unbroken.rows(texts), resumed.rows(texts)), told
    assert len(resumed) == len(texts)
    unbroken_files, resumed_files = files(unbroken), files(resumed)
    assert unbroken_files == resumed_files, told


def test_a_line_that_a_killed_process_left_half_written_is_passed_by(tmp_path):
    store = small(tmp_path)
    fill(store, lengths, NAMES[:5])
    with (store.path / "fills.jsonl").open("ab") as file:
        file.write(b'{"when": "2026\n[1]\n\xff\n7}\n')
    fill(store, lengths, NAMES)
    assert [line["texts"] for line in fills(store)] == [5, len(NAMES) - 5]


def test_what_a_killed_writer_left_beside_a_shard_is_cleared_away(tmp_path):
    store = small(tmp_path, shards=1)
    fill(store, lengths, NAMES[:5])
    (store.path / ".000.json.4711.tmp").write_text("half")
    fill(store, lengths, NAMES)
    assert not list(store.path.glob(".*.tmp"))


def test_a_store_that_was_moved_while_it_was_open_says_so(tmp_path):
    store = small(tmp_path / "here")
    fill(store, lengths, NAMES)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(ValueError, match="is gone: moved or removed since it was opened"):
        store.rows(NAMES)


def test_a_teacher_travels_to_another_process_with_its_settings():
    source = LocalTeacher(MINILM, pooling="mean", dtype="bfloat16", autocast=False)
    there = pickle.loads(pickle.dumps(source))
    assert (there.name, there.settings) == (source.name, source.settings)
