"""Vectors on disk: what encode gives, whole or absent, and found again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5 import cli
from st_jv5 import texts as texts_module
from st_jv5.precision import codes, from_codes
from st_jv5.vectors import Corpus, VectorFolder, encode_corpus, search
from st_jv5.vectors import corpus as corpus_module
from tests import children
from tests.conftest import MINILM, adapted, real_texts
from tests.teacher.test_ray import ROOT, run


@pytest.fixture
def documents(tmp_path) -> str:
    """Thirty texts, some equal, one empty, one of spaces."""
    texts = [*real_texts()[:25], *real_texts()[:3], "", "  "]
    path = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"id": [f"doc-{i}" for i in range(30)], "text": texts}), path)
    return str(path)


# ---------------------------------------------------------------------------------------- corpora


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    texts, ids = ["one", 'two, "quoted"', "drei\u2028vier", ""], [7, 8, 9, 10]
    lines = [{"id": one, "text": text} for one, text in zip(ids, texts, strict=True)]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("a.parquet", "a.jsonl"):
        corpus = Corpus(tmp_path / name, "text")
        blocks = list(corpus.blocks(3))
        assert [block.first for block in blocks] == [0, 3]
        assert [one for block in blocks for one in block.ids] == ids
        assert [text for block in blocks for text in block.texts] == texts
        again, sha256 = Corpus(**corpus.describe()), corpus.summary().sha256
        assert again.texts_of({3: ids[3], 1: ids[1]}, sha256) == {1: texts[1], 3: ""}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], [texts[0]], [texts[1]]])
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (only,) = Corpus(tmp_path / "a.csv").blocks(9)
    assert (only.ids, only.texts) == ([0, 1], texts[:2])
    (only,) = Corpus(tmp_path / "a.txt").blocks(9)
    assert only.texts == ["one", "", "two"]
    (only,) = Corpus([tmp_path / "a.parquet", tmp_path / "a.parquet"], "text").blocks(9)
    assert only.ids == ids * 2
    one, other = (Corpus(tmp_path / name, "text").summary() for name in ("a.parquet", "a.jsonl"))
    assert one == other
    assert (one.rows, one.sample) == (4, texts)


def test_a_sample_is_from_all_over_and_always_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "SAMPLE_TEXTS", 10)
    monkeypatch.setattr(texts_module, "READ_ROWS", 7)
    monkeypatch.setattr(corpus_module, "READ_ROWS", 7)
    (tmp_path / "a.txt").write_text("".join(f"{i}\n" for i in range(1000)))
    found = [int(text) for text in Corpus(tmp_path / "a.txt").summary().sample]
    assert 10 <= len(found) < 20
    assert found == list(range(0, 1000, found[1]))


def test_bad_corpora_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": ["x", None], "n": [1, 2]}), path)
    with pytest.raises(ValueError, match=r"row 1 of .*a.parquet: 'text' must be a text, not None"):
        Corpus(path, "text").summary()
    with pytest.raises(ValueError, match=r"row 0 of .*: 'n' must be a text, not 1"):
        Corpus(path, "n").summary()
    with pytest.raises(ValueError, match=r"no column 'txt'; it has: id, text, n"):
        Corpus(path, "txt")
    with pytest.raises(ValueError, match=r"3 columns; name one"):
        Corpus(path)
    with pytest.raises(ValueError, match=r"no column 'key'"):
        Corpus(path, "text", id_column="key")
    with pytest.raises(ValueError, match=r"no file .*b.jsonl"):
        Corpus(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="at least one file"):
        Corpus([])
    (tmp_path / "b.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"several kinds in one corpus: parquet, text"):
        Corpus([path, tmp_path / "b.txt"])
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b.txt has no row"):
        Corpus(tmp_path / "b.txt")


# ---------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("files", ["parquet", "npy"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_a_folder_has_what_encode_gives(saved, documents, tmp_path, precision, files):
    folder = encode_corpus(
        saved,
        Corpus(documents, "text"),
        tmp_path / "vectors",
        task="retrieval",
        dim=16,
        precision=precision,
        shard_rows=8,
        files=files,
    )
    texts = pq.read_table(documents)["text"].to_pylist()
    model = SentenceTransformer(saved)
    expected = st_jv5.encode(model, texts, task="retrieval", dim=16)
    found = list(VectorFolder(folder.path).loaded())
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    assert [one for _, ids, _ in found for one in ids] == [f"doc-{i}" for i in range(30)]
    kept = np.concatenate([kept for _, _, kept in found])
    assert kept.dtype == {"int8": "int8", "binary": "uint8"}.get(precision, precision)
    ranges = folder.ranges
    if precision == "int8":
        assert ranges is not None
        np.testing.assert_allclose(ranges, [expected.min(0), expected.max(0)], atol=1e-5)
    vectors = from_codes(kept, precision, 16, ranges=ranges)
    near = from_codes(codes(expected, precision, ranges), precision, 16, ranges=ranges)
    bound = {"float16": 2e-3, "int8": 0.05}.get(precision, 1e-5)
    np.testing.assert_allclose(vectors, near, atol=bound)
    told = folder.manifest
    assert (told["task"], told["prompt"], told["rows"]) == ("retrieval", "Document: ", 30)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_two_processes_and_a_run_that_goes_on_write_the_same_bytes(saved, documents, tmp_path):
    settings = {"task": "clustering", "precision": "int8", "shard_rows": 8}
    corpus = Corpus(documents, "text")
    once = encode_corpus(saved, corpus, tmp_path / "once", **settings)
    two = encode_corpus(saved, corpus, tmp_path / "two", **settings, processes=2)
    assert contents(once.path) == contents(two.path)
    for name in ("00000.parquet", "00002.parquet", "ranges.npy"):
        (two.path / name).unlink()
    (two.path / ".00000.parquet.1.tmp").write_bytes(b"what a killed process left")
    encode_corpus(saved, corpus, two.path, **settings)
    assert contents(once.path) == contents(two.path)


@pytest.mark.full
def test_ray_writes_the_bytes_of_one_process(saved, documents, tmp_path, monkeypatch):
    near = [os.path.relpath(path, ROOT) for path in (saved, documents, tmp_path / "ray")]
    run("-m", "tests.vectors.ray_worker", *near)  # whose workers run elsewhere
    settings = {"task": "retrieval", "precision": "int8", "shard_rows": 4}
    monkeypatch.chdir(ROOT)
    once = encode_corpus(near[0], Corpus(near[1], "text"), tmp_path / "once", **settings)
    assert contents(once.path) == contents(tmp_path / "ray")


def write_rows(path: Path, count: int) -> str:
    """Short distinct texts."""
    words = [text[:24] for text in real_texts()]
    texts = [f"{words[i % len(words)]} {i}" for i in range(count)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10_000)
    return str(path)


def encode_command(model: str, documents: str, out: Path, shard_rows: int) -> list[str]:
    """What stands behind ``st-jv5``."""
    command = ["encode", model, "--task", "retrieval"]
    command += ["--in", documents, "--column", "text", "--out", str(out), "--dim", "16"]
    return [*command, "--shard-rows", str(shard_rows)]


def shards_in(out: Path) -> int:
    return len(list(out.glob("*.parquet")))


def kill_and_go_on(processes, command: list[str], out: Path, shards: int, kills: int) -> None:
    """Kill a command at evenly spread shards; it is left unfinished."""
    log = out.with_suffix(".log")
    for kill in range(1, kills + 1):
        process = processes.Process(target=children.command, args=(log, command))
        process.start()
        while shards_in(out) < kill * shards // (kills + 1) and process.is_alive():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"it ended before: {log.read_text()}"


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(processes, saved, tmp_path):
    documents = write_rows(tmp_path / "rows.parquet", 1500)
    corpus, out = Corpus(documents, "text"), tmp_path / "killed"
    settings = {"task": "retrieval", "dim": 16, "shard_rows": 100}
    once = encode_corpus(saved, corpus, tmp_path / "once", **settings)
    kill_and_go_on(processes, encode_command(saved, documents, out, 100), out, shards=15, kills=2)
    assert 0 < shards_in(out) < 15
    encode_corpus(saved, corpus, out, **settings)
    assert contents(once.path) == contents(out)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_million_rows_take_flat_memory_and_five_kills(processes, tmp_path):
    model = str(tmp_path / "model")  # 384 dims
    student = st_jv5.new_student(MINILM, layers=1)
    st_jv5.add_task(student, "retrieval")
    student.save_pretrained(model)
    documents = write_rows(tmp_path / "rows.parquet", 1_000_000)
    once, out = tmp_path / "once", tmp_path / "killed"
    module = [sys.executable, "-m", "st_jv5"]
    command = [*encode_command(model, documents, once, 4096), "--max-tokens", "16"]
    memory = []
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*module, *command], stderr=log)
    while process.poll() is None:
        if shards_in(once) >= 1:
            memory.append(psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    more = (max(memory) - memory[0]) / 2**20
    print(f"{memory[0] / 2**20:.0f} MiB at the first shard, at most {more:.0f} MiB more")
    assert more < 200
    command[command.index(str(once))] = str(out)
    kill_and_go_on(processes, command, out, shards=245, kills=5)
    subprocess.run([*module, *command], check=True, capture_output=True)
    assert contents(once) == contents(out)


def test_other_settings_in_a_folder_are_refused_by_name(saved, documents, tmp_path, monkeypatch):
    corpus, out = Corpus(documents, "text"), tmp_path / "vectors"
    encode_corpus(saved, corpus, out, task="retrieval")
    for change, message in (
        ({"task": "clustering"}, r"begun with task 'retrieval', and this run has 'clustering'"),
        ({"task": "query"}, r"begun with prompt 'Document: ', and this run has 'Query: '"),
        ({"task": "retrieval", "dim": 8}, r"begun with dim 48, and this run has 8"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_corpus(saved, corpus, out, **change)
    shutil.copy(documents, tmp_path / "other.parquet")
    pq.write_table(pq.read_table(documents).slice(1), documents)
    with pytest.raises(ValueError, match="begun with corpus_sha256"):
        encode_corpus(saved, Corpus(documents, "text"), out, task="retrieval")
    shutil.copy(tmp_path / "other.parquet", documents)
    monkeypatch.setattr("st_jv5.vectors.write.LOCK_SECONDS", 0.1)
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="another process is writing to"):
        encode_corpus(saved, corpus, out, task="retrieval")


def test_bad_settings_are_named_before_any_work(saved, documents, tmp_path):
    corpus = Corpus(documents, "text")
    for settings, message in (
        ({"task": "retreival"}, r"unknown task 'retreival'"),
        ({"task": "retrieval", "prompt_name": "quary"}, r"unknown prompt 'quary'"),
        ({"task": "retrieval", "precision": "int4"}, r"unknown precision 'int4'"),
        ({"task": "retrieval", "precision": "binary-rescored"}, "rescoring is a way to search"),
        ({"task": "retrieval", "dim": 99}, r"dim must lie in 1..48"),
        ({"task": "retrieval", "shard_rows": 0}, "shard_rows must be positive, not 0"),
        ({"task": "retrieval", "engine": "spark"}, "engine must be one of local, ray"),
        ({"task": "retrieval", "files": "csv"}, "files must be one of parquet, npy"),
        ({"task": "retrieval", "dtype": "half"}, "dtype must be one of float32"),
        ({"task": "retrieval", "max_tokens": 1}, "must be more than 1, which the tokenizer adds"),
        ({}, "no default task"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_corpus(saved, corpus, tmp_path / "vectors", **settings)
    assert not (tmp_path / "vectors").exists()
    with pytest.raises(ValueError, match=r"documents.parquet is a file; choose a folder"):
        encode_corpus(saved, corpus, documents, task="retrieval")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is there already and has no manifest.json"):
        encode_corpus(saved, corpus, tmp_path / "full", task="retrieval")


def test_a_stock_model_encodes_without_a_task(documents, tmp_path):
    folder = encode_corpus(MINILM, Corpus(documents, "text"), tmp_path / "vectors", max_tokens=16)
    assert (folder.manifest["task"], folder.dim) == (None, 384)
    with pytest.raises(ValueError, match=r"a model of Transformer has no tasks"):
        encode_corpus(MINILM, Corpus(documents, "text"), tmp_path / "other", task="retrieval")


def test_a_published_folder_is_encoded_and_searched(published, documents, tmp_path):
    corpus = Corpus(documents, "text")
    encode_corpus(published[1], corpus, tmp_path / "vectors", task="retrieval", dtype="bfloat16")
    ((hit,),) = search(tmp_path / "vectors", [real_texts()[2]], k=1)
    assert -1 <= hit.score <= 1
    assert VectorFolder(tmp_path / "vectors").manifest["dtype"] == "bfloat16"


# --------------------------------------------------------------------------------------- searching


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_search_finds_what_a_sorted_list_of_cosines_has(saved, documents, tmp_path, precision):
    corpus, out = Corpus(documents, "text"), tmp_path / "vectors"
    settings = {"task": "retrieval", "precision": precision, "shard_rows": 7}
    folder = encode_corpus(saved, corpus, out, **settings)
    model = SentenceTransformer(saved)
    queries = ["The Acropolis", "music of the Arab world"]
    asked = st_jv5.encode(model, queries, task="query")
    kept = np.concatenate([kept for _, _, kept in folder.loaded()])
    scores = asked @ from_codes(kept, precision, 48, ranges=folder.ranges).T
    found = search(out, queries, k=5, model=model)
    for hits, expected in zip(found, scores, strict=True):
        best = np.sort(expected)[::-1][:5]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-5)
        for hit in hits:
            assert hit.id == f"doc-{hit.row}"
            assert expected[hit.row] == pytest.approx(hit.score, abs=1e-5)
    assert [len(hits) for hits in search(out, queries, k=100, model=model)] == [30, 30]


def test_bad_searches_are_named(saved, documents, backbones, tmp_path):
    out = tmp_path / "vectors"
    folder = encode_corpus(saved, Corpus(documents, "text"), out, task="clustering", shard_rows=16)
    with pytest.raises(ValueError, match="k must be positive"):
        search(out, ["x"], k=0)
    with pytest.raises(ValueError, match=r"was made by .*saved \(.*not by this model"):
        search(out, ["x"], model=adapted(backbones["qwen3"]))
    with pytest.raises(ValueError, match=r"has no manifest.json; make one with: st-jv5 encode"):
        search(tmp_path, ["x"])
    path = out / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"00001.parquet cannot be read.*encode makes it anew"):
        search(out, ["x"])
    for path in out.glob("*.parquet"):
        path.unlink()
    with pytest.raises(ValueError, match="has no shard yet"):
        search(folder, ["x"])


def test_the_command_shows_texts(saved, documents, tmp_path, capsys):
    out = str(tmp_path / "vectors")
    how = ["--task", "text-matching", "--in", documents, "--column", "text", "--dim", "16"]
    cli.main(["encode", saved, *how, "--out", out, "--precision", "binary"])
    assert "30 vectors of 16 dims as binary (2 bytes each), 1 shards" in capsys.readouterr().out
    first = real_texts()[1]
    cli.main(["search", out, first, "-k", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == first
    assert lines[1].split()[2:4] == ["doc-1", first.split()[0]]
    Path(documents).unlink()
    cli.main(["search", out, first, "-k", "1"])
    assert "texts are not shown: no file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: no file"):
        cli.main(["encode", saved, *how, "--out", out])
