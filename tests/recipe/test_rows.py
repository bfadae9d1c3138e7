"""Rows on disk: prepared once, whole or not at all, and of any size."""

from __future__ import annotations

import doctest
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from datasets import Dataset

from st_jv5 import roles, texts
from st_jv5.evaluation import own_tasks
from st_jv5.recipe import config
from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data import halves, prepare, sources
from st_jv5.recipe.data import training_sets as data
from st_jv5.recipe.data.prepare import _gathered, read_rows
from st_jv5.recipe.data.rows import Rows, Texts
from st_jv5.teacher import shard
from st_jv5.teacher.shard import first_of_each, hash_texts


@pytest.fixture
def spec(tmp_path) -> DataSet:
    """200 pairs, 20 of them repeats and 10 with an empty text."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"q": f"question {i % 180}", "d": f"answer {i % 180}"} for i in range(200)]
    rows += [{"q": f"question {i}", "d": ""} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSet(str(path), {"query": "q", "positive": "d"})


def test_what_was_dropped_and_why_is_told(spec, tmp_path, caplog):
    caplog.set_level("INFO", "st_jv5.recipe")
    told = read_rows("faq", spec, 0, tmp_path / "data").told
    assert told["name"] == "faq"
    assert [told[why] for why in ("read", "empty", "repeated", "taken")] == [210, 10, 20, 180]
    assert "faq: 180 of 210 rows (10 empty in positive, 20 repeated)" in caplog.text


def test_blocks_of_any_size_give_the_same_rows(spec, tmp_path, monkeypatch):
    whole = list(read_rows("x", spec, 0, tmp_path / "whole"))
    monkeypatch.setattr(prepare, "BLOCK_ROWS", 7)
    assert list(read_rows("x", spec, 0, tmp_path / "parts")) == whole


def test_rows_are_read_once_until_the_file_the_settings_or_the_seed_change(
    spec, tmp_path, monkeypatch
):
    prepared = []
    write = prepare._Preparation.write

    def counted(self, folder):
        prepared.append(self.name)
        write(self, folder)

    monkeypatch.setattr(prepare._Preparation, "write", counted)
    folder = tmp_path / "data"
    for _ in range(2):
        assert len(read_rows("x", spec, 0, folder)) == 180
    assert len(prepared) == 1
    read_rows("x", spec, 1, folder)
    read_rows("x", spec, 0, folder, barred={1})
    assert len(prepared) == 3
    with Path(spec.path).open("a") as file:
        file.write('{"q": "new", "d": "row"}\n')
    assert len(read_rows("x", spec, 0, folder)) == 181


def test_processes_that_ask_at_once_prepare_once(spec, tmp_path, monkeypatch):
    prepared = []
    write = prepare._Preparation.write

    def slow(self, folder):
        prepared.append(folder)
        time.sleep(0.3)
        write(self, folder)

    monkeypatch.setattr(prepare._Preparation, "write", slow)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(read_rows, "x", spec, 0, tmp_path / "data") for _ in range(4)]
        assert {len(one.result()) for one in asked} == {180}
    assert len(prepared) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that is killed in the midst of it")
def test_a_kill_while_rows_are_prepared_leaves_nothing_half_made(spec, tmp_path, monkeypatch):
    folder, begun = tmp_path / "data", tmp_path / "begun"

    def stops(texts):
        begun.touch()
        time.sleep(60)

    child = os.fork()
    if child == 0:
        prepare.hash_texts = stops  # rows are half written then
        read_rows("x", spec, 0, folder)
        os._exit(1)
    deadline = time.monotonic() + 30
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert begun.exists()
    assert not list(folder.glob("x-*"))
    assert list(folder.glob(".x-*.partial"))
    found = read_rows("x", spec, 1, folder)  # what another seed's kill has left goes, too
    assert sorted(found.column("query")) == sorted(f"question {i}" for i in range(180))
    assert sorted(path.name for path in folder.iterdir()) == sorted([found.folder.name, "x.lock"])


def test_a_column_of_more_than_two_gib_of_text_is_gathered_from():
    """The same megabytes stand for all of it."""
    chunk = pa.array([f"{i} " + "text " * 600 for i in range(1000)])
    table = pa.table({"d": pa.chunked_array([chunk] * 1200)})
    assert table.nbytes > 3 << 30
    wanted = np.random.default_rng(0).permutation(len(table))[:500]
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        table.take(pa.array(wanted))
    starts = np.arange(0, len(table) + 1, 1000)
    found = _gathered(table.to_batches(), starts, wanted)["d"].to_pylist()
    assert [int(text.split()[0]) for text in found] == (wanted % 1000).tolist()


def test_columns_on_disk_can_hold_more_than_two_gib(spec, tmp_path):
    schema = read_rows("x", spec, 0, tmp_path / "data").dataset.data.schema
    assert {schema.field(role).type for role in spec.columns} == {pa.large_string()}


def test_texts_of_several_sets_are_one_list_without_repeats(spec, tmp_path):
    pairs = read_rows("pairs", spec, 0, tmp_path / "data")
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"t": f"question {i}"}) + "\n" for i in range(170, 190)))
    texts = read_rows("texts", DataSet(str(path), {"text": "t"}, "texts"), 0, tmp_path / "data")
    found = Texts([(pairs, "query"), (texts, "text"), (pairs, "query"), (pairs, "positive")])
    expected = [*pairs.column("query"), *texts.column("text"), *pairs.column("positive")]
    assert list(found) == list(dict.fromkeys(expected)) == found[:]
    assert len(found) == 370
    assert (found.hashes == hash_texts(list(found))).all()
    assert len(Texts([])) == 0


def test_the_first_of_equal_hashes_is_the_first_text():
    draw = np.random.default_rng(0)
    texts = [f"text {i}" for i in draw.integers(50, size=300)]
    first, which = first_of_each(hash_texts(texts))
    distinct = list(dict.fromkeys(texts))
    assert [texts[i] for i in first] == distinct
    assert [distinct[i] for i in which] == texts


@pytest.mark.parametrize("of", [prepare, data, shard, halves, roles, config, texts, own_tasks])
def test_the_examples_of_the_docstrings_are_right(of):
    failed, tried = doctest.testmod(of)
    assert tried
    assert not failed


def own_memory() -> int:
    info = psutil.Process().memory_info()
    return info.rss - info.shared


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="Linux tells it")
def test_reading_rows_takes_no_memory_of_a_process_own(tmp_path, monkeypatch):
    texts = [f"{i} " + "word " * 400 for i in range(30_000)]
    assert sum(map(len, texts)) > 55 << 20
    dataset = Dataset.from_dict({"t": texts})
    monkeypatch.setattr(sources, "load_dataset", lambda *args, **settings: dataset)
    folder = read_rows("x", DataSet("org/set", {"text": "t"}, "texts"), 0, tmp_path).folder
    rows = Rows(folder)
    rows.texts([0])
    before = own_memory()
    longest = max(map(len, (rows.texts([i])[0] for i in range(len(rows)))))
    assert longest > 2000
    assert own_memory() - before < 10 << 20
