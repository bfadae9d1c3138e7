"""Vectors on disk: as they were written, or named and made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from st_jv5 import cli
from st_jv5.vectors import Corpus, VectorFolder, encode_corpus, search, verify
from tests.conftest import real_texts
from tests.teacher.test_store_damage import cut, flip, tell, zero
from tests.vectors.test_vectors import contents

KINDS = {"npy": ("npy", "float32"), "parquet": ("parquet", "int8")}


@pytest.fixture(scope="module")
def made(saved_once, tmp_path_factory) -> Path:
    """A corpus of 30 texts, and its vectors of each kind in shards of 8."""
    folder = tmp_path_factory.mktemp("made")
    table = pa.table({"id": [f"doc-{i}" for i in range(30)], "text": real_texts()[:30]})
    pq.write_table(table, folder / "documents.parquet")
    for name, (files, precision) in KINDS.items():
        corpus = Corpus(folder / "documents.parquet", "text")
        how = {"task": "clustering", "dim": 16, "shard_rows": 8}
        encode_corpus(
            str(saved_once), corpus, folder / name, **how, files=files, precision=precision
        )
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "made")


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Another table, with its right checksum: only its shape tells."""

    def write(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path)
        path.with_name(path.name + ".xxh3").unlink()

    return write


def resave(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array = change(np.load(path))
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=True)
        path.with_name(path.name + ".xxh3").unlink()

    return write


def broken(rows: np.ndarray) -> np.ndarray:
    rows[3, 5] = np.nan
    return rows


def pickled(rows: np.ndarray) -> np.ndarray:
    return np.array([{}] * len(rows), dtype=object)


SHARDS = [
    ("parquet/00001.parquet", flip(900 * 8), "00001.parquet .* checksum"),
    ("parquet/00001.parquet", zero(8, 60), "00001.parquet .* checksum"),
    ("parquet/00001.parquet", cut(20), "00001.parquet .* checksum"),
    ("parquet/00001.parquet", cut(10**6), "00001.parquet .* checksum"),
    ("parquet/00001.parquet", rewrite(lambda t: t.slice(1)), "has 7 ids .*, not 8"),
    ("parquet/00001.parquet", rewrite(lambda t: t.rename_columns(["key", "vector"])), "'id'|id"),
    ("parquet/00001.parquet", rewrite(lambda t: t.select(["id"])), "vector"),
    ("parquet/00003.parquet", rewrite(lambda t: pa.concat_tables([t, t])), "has 12 ids .*, not 6"),
    (
        "parquet/00001.parquet",
        rewrite(lambda t: t.set_column(1, "vector", pa.array([[0.5] * 16] * 8))),
        "has double vectors|has float64 vectors, not int8",
    ),
    (
        "parquet/00001.parquet",
        rewrite(lambda t: t.set_column(0, "id", pa.array([None] * 8, pa.string()))),
        "it has nulls",
    ),
    ("npy/00001.npy", flip(300 * 8), "00001.npy .* checksum"),
    ("npy/00001.npy", cut(4), "00001.npy .* checksum"),
    ("npy/00001.ids.npy", flip(200 * 8), "00001.ids.npy is damaged"),
    ("npy/00001.ids.npy", Path.unlink, "00001.*cannot be read"),
    ("npy/00001.npy", resave(broken), "the vector of 'doc-11' is NaN or infinite"),
    ("npy/00001.npy", resave(lambda rows: rows[:, :8]), r"\(8, 8\), not 8 and \(8, 16\)"),
    ("npy/00001.npy", resave(lambda rows: rows.astype(np.float64)), "float64 vectors, not float32"),
    ("npy/00001.npy", resave(pickled), "00001.npy cannot be read"),
    ("npy/00001.npy", lambda path: path.write_bytes(b""), "00001.npy cannot be read"),
]

OTHERS = [
    ("parquet/ranges.npy", flip(150 * 8), "ranges.npy .* checksum"),
    ("parquet/ranges.npy", resave(lambda r: r * np.nan), "invalid ranges"),
    ("parquet/ranges.npy", resave(lambda r: r[::-1]), "invalid ranges"),
    ("parquet/ranges.npy", resave(lambda r: r[:, :4]), r"not \(2, 16\)"),
    ("parquet/ranges.npy", Path.unlink, "ranges.npy cannot be read"),
]

MANIFESTS = [
    (tell(shard_rows=0), "shard_rows cannot be 0"),
    (tell(shard_rows="8"), "shard_rows cannot be '8'"),
    (tell(rows=10**9, shard_rows=1), "1000000000 shards are more than"),
    (tell(rows=True), "rows cannot be True"),
    (tell(rows=-3), "rows cannot be -3"),
    (tell(rows=7), "is beyond the 7 rows|has 8 ids"),
    (tell(dim=8), r"\(8, 16\), not 8 and \(8, 8\)"),
    (tell(precision="int4"), "unknown precision 'int4'"),
    (tell(precision="binary-rescored"), "are not kept as 'binary-rescored'"),
    (tell(precision="float16"), "vectors, not float16"),
    (tell(files="csv"), "files cannot be 'csv'"),
    (tell(format=2), "has format 2; this version reads 1"),
    (tell(corpus="documents"), "corpus cannot be 'documents'"),
    (tell(prompt=None), "prompt cannot be None"),
    (tell(prompt="Query: "), "manifest.json was changed after it was written"),
    (lambda path: path.write_text("{"), "cannot be read as JSON"),
    (lambda path: path.write_text('{"format": 1}'), "lacks 'model'"),
    (Path.unlink, "has no manifest.json"),
]


def refused(folder: Path, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        cli.main(["verify", str(folder)])


@pytest.mark.parametrize(("name", "damage", "said"), [*SHARDS, *OTHERS], ids=lambda o: str(o)[:24])
def test_verify_finds_every_damage_and_encode_mends_it(
    saved_once, made, folder, name, damage, said, caplog
):
    path = folder / name
    damage(path)
    refused(path.parent, said)
    corpus = Corpus(made / "documents.parquet", "text")
    files, precision = KINDS[path.parent.name]
    how = {"task": "clustering", "dim": 16, "shard_rows": 8, "files": files}
    encode_corpus(str(saved_once), corpus, path.parent, **how, precision=precision)
    assert contents(path.parent) == contents(made / path.parent.name)
    if damage is not Path.unlink:
        assert path.stem.split(".")[0] in caplog.text


@pytest.mark.parametrize(("damage", "said"), MANIFESTS, ids=lambda one: str(one)[:24])
def test_a_manifest_that_cannot_be_is_named(folder, damage, said):
    damage(folder / "npy" / "manifest.json")
    refused(folder / "npy", said)


def test_shards_that_are_missing_or_of_another_corpus_are_told(folder):
    (folder / "npy" / "00002.npy").unlink()
    refused(folder / "npy", "1 of 4 shards are missing, such as 00002.npy")
    for path in (folder / "npy").glob("00001.*"):
        shutil.copy(path, path.with_name(path.name.replace("00001", "00009")))
    refused(folder / "npy", "00009.npy is beyond the 30 rows")


def test_a_folder_of_before_without_checksums_is_read(folder, saved_once):
    for path in folder.rglob("*.xxh3"):
        path.unlink()
    assert verify(folder / "npy").rows == 30
    model = SentenceTransformer(str(saved_once))
    assert len(search(folder / "parquet", ["a"], k=3, model=model)[0]) == 3


# ---------------------------------------------------------------------------- the command, again


def test_encoding_a_folder_that_is_complete_ends_well_and_computes_nothing(
    saved_once, folder, capsys, monkeypatch
):
    how = ["--task", "clustering", "--dim", "16", "--shard-rows", "8", "--precision", "int8"]
    given = ["--in", str(folder / "documents.parquet"), "--column", "text"]
    manifest = folder / "parquet" / "manifest.json"
    told = json.loads(manifest.read_text())
    before = contents(folder / "parquet")
    monkeypatch.setattr("st_jv5.vectors.write.Work.run", None)  # would be called
    cli.main(["encode", str(saved_once), *how, *given, "--out", str(folder / "parquet")])
    assert "30 vectors of 16 dims as int8 (16 bytes each), 4 shards" in capsys.readouterr().out
    assert contents(folder / "parquet") == before
    cli.main(["verify", str(folder / "parquet")])
    assert "30 vectors of 16 dims as int8" in capsys.readouterr().out
    assert told["rows"] == 30


def test_a_folder_that_was_moved_from_its_model_says_so(folder, monkeypatch, capsys):
    manifest = folder / "npy" / "manifest.json"
    tell(model="out/demo/model")(manifest)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=r"by the model in out/demo/model, .* with --model"):
        cli.main(["search", "npy", "a"])


def test_hits_of_a_corpus_that_has_changed_show_ids_alone(folder, saved_once, capsys):
    ask = ["search", str(folder / "npy"), real_texts()[3], "-k", "1", "--model", str(saved_once)]
    path = folder / "documents.parquet"
    tell(corpus={"source": [str(path)], "column": "text", "id_column": "id"})(
        folder / "npy" / "manifest.json"
    )
    cli.main(ask)
    assert "texts are not shown" not in capsys.readouterr().out
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    texts[29] += " more"  # though the hit itself is as it was
    pq.write_table(table.set_column(1, "text", pa.array(texts)), path)
    cli.main(ask)
    first, _, hit = capsys.readouterr().out.splitlines()
    assert first.endswith("documents.parquet has changed since it was encoded")
    assert hit.split()[2:] == ["doc-3"]


def test_a_vector_that_is_not_finite_is_named_by_its_row_and_id(saved_once, folder, monkeypatch):
    from st_jv5 import encoding

    stock = encoding._encode

    def breaks(model, texts, *args):
        vectors = stock(model, texts, *args)
        vectors[[real_texts()[21] in text for text in texts]] = np.nan
        return vectors

    monkeypatch.setattr(encoding, "_encode", breaks)
    corpus = Corpus(folder / "documents.parquet", "text")
    with pytest.raises(
        ValueError, match=r"row 21 \(id 'doc-21'\) of .*: the vector of text 5 is NaN"
    ):
        encode_corpus(str(saved_once), corpus, folder / "new", task="clustering", shard_rows=8)
    assert VectorFolder(folder / "new").written() == [0, 1]
