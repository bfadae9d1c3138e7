"""Stores as a whole: what is in them, are they right, two in one, one less."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_jv5.cli import main
from st_jv5.teacher import TeacherStore, fill, merge, prune, verify
from st_jv5.teacher.upkeep import MARK
from st_jv5.texts import read_texts
from tests.conftest import MINILM

NAMES = [f"text {i}" for i in range(60)]


def store_of(folder: Path, names: list[str], seed: int, shards: int = 4, **key) -> TeacherStore:
    store = TeacherStore.open(folder, create=True)
    view = store.space("big", dim=6, shards=shards, dtype="float32", **key)
    view.add(names, torch.randn(len(names), 6, generator=torch.Generator().manual_seed(seed)))
    return store


def view(store: TeacherStore, **key) -> TeacherStore:
    return store.space("big", dtype="float32", **key)


def test_two_stores_become_one_and_the_first_has_the_say(tmp_path):
    one = store_of(tmp_path / "a", NAMES[:40], seed=1)
    two = store_of(tmp_path / "b", NAMES[20:], seed=2, shards=3)
    store_of(tmp_path / "b", NAMES[:5], seed=3, prompt="p: ")
    both = merge([one, two], tmp_path / "c", shards=7)
    assert len(both.spaces()) == 2
    found = view(both)
    assert found.shards == 7
    for source, names in ((one, NAMES[:40]), (two, NAMES[40:])):
        expected = view(source).gather(view(source).rows(names))
        assert torch.equal(found.gather(found.rows(names)), expected)
    assert len(found) == 60
    assert len(view(both, prompt="p: ")) == 5
    assert not (tmp_path / "c" / MARK).exists()


def test_a_stopped_merge_goes_on_and_nothing_else_is_overwritten(tmp_path, monkeypatch):
    from st_jv5.teacher import shard as module

    one, two = (store_of(tmp_path / name, NAMES[:40], seed=1) for name in "ab")
    append, calls = module.Shard.append, []

    def stop_at_the_second(shard, *args):
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(shard, *args)

    monkeypatch.setattr(module.Shard, "append", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        merge([one, two], tmp_path / "c")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"c is not empty; choose another folder"):
        merge([one], tmp_path / "c")
    assert len(view(merge([one, two], tmp_path / "c"))) == 40
    with pytest.raises(ValueError, match=r"c is not empty; choose another folder"):
        merge([one, two], tmp_path / "c")
    with pytest.raises(ValueError, match="a is one of the old stores"):
        merge([one, two], tmp_path / "a")


def test_prune_leaves_one_space_out_and_the_old_store_alone(tmp_path):
    store = store_of(tmp_path / "a", NAMES, seed=1)
    store_of(tmp_path / "a", NAMES, seed=2, prompt="p: ")
    gone, kept = view(store), view(store, prompt="p: ")
    new = prune(store, [gone.key.id], tmp_path / "b")
    assert [space.prompt for space in new.spaces()] == ["p: "]
    again = view(new, prompt="p: ")
    assert torch.equal(again.gather(again.rows(NAMES)), kept.gather(kept.rows(NAMES)))
    assert len(store.spaces()) == 2
    with pytest.raises(ValueError, match=r"a has 0 spaces named 'nope'; it has: big-"):
        prune(store, ["nope"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


# ----------------------------------------------------------------------------------- verification


@pytest.fixture(scope="module")
def teacher() -> SentenceTransformer:
    return SentenceTransformer(MINILM)


@pytest.fixture
def filled(tmp_path, texts, teacher) -> TeacherStore:
    """Real vectors of MiniLM behind a prompt."""
    store = TeacherStore.open(tmp_path / "store", create=True)
    store = store.space(MINILM, prompt="say: ", max_tokens=64, dim=384)
    fill(store, teacher, texts)
    return store


def test_verify_finds_right_vectors_right_and_one_wrong_one(filled, texts, teacher):
    found = verify(filled, teacher, [*texts, "not there"], sample=10)
    assert found.missing == 1
    assert len(found.texts) == len(found.cosines) == 10
    assert found.cosines.min() > 0.9999
    assert verify(filled, teacher, texts, sample=10, seed=1).texts != found.texts
    shard = filled._all()[0]
    raw = np.memmap(shard.paths["vectors"], np.float16, "r+", shape=(shard.rows, 384))
    raw[0] = raw[0][::-1]
    raw.flush()
    found = verify(filled, teacher, texts, sample=1000)
    assert (found.cosines < 0.9).sum() == 1
    with pytest.raises(ValueError, match="none of the 1 texts is in"):
        verify(filled, teacher, ["not there"])
    with pytest.raises(ValueError, match="sample must be positive, not 0"):
        verify(filled, teacher, texts, sample=0)


def test_the_command_line_shows_checks_joins_and_drops(filled, texts, tmp_path, capsys):
    folder, lines = str(filled.folder), tmp_path / "texts.txt"
    lines.write_text("\n".join(texts), encoding="utf-8")
    main(["teacher", "ls", folder])
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["space", "vectors"]
    assert line.split()[:2] == [filled.key.id, str(len(texts))]
    assert "'say: '" in line
    main(["teacher", "info", folder])
    told = json.loads(capsys.readouterr().out)
    assert (told["vectors"], told["prompt"], told["shards"]) == (len(texts), "say: ", 16)
    assert told["fills"][0]["texts"] == len(texts)
    main(["teacher", "verify", folder, "--texts", str(lines), "--sample", "7"])
    first, told = capsys.readouterr().out.splitlines()
    assert first == f"{filled.key.id}: 64 vectors, as they were written"
    assert re.match(r"7 texts again: cosine at least (1\.0|0\.9999)", told), told
    wrong = ["--model", MINILM, "--texts", str(lines), "--bound", "1.0"]
    with pytest.raises(SystemExit, match=r"of 64 cosines are below 1; the least is that of '"):
        main(["teacher", "verify", folder, *wrong])
    with pytest.MonkeyPatch.context() as patch:
        nothing = lambda self, texts, space: np.full((len(texts), 384), np.nan)  # noqa: E731
        patch.setattr("st_jv5.teacher.sources.LocalTeacher.embed", nothing)
        with pytest.raises(SystemExit, match="7 of 7 cosines are below"):
            main(["teacher", "verify", folder, "--texts", str(lines), "--sample", "7"])
    capsys.readouterr()
    main(["teacher", "merge", folder, folder, "--out", str(tmp_path / "both")])
    assert capsys.readouterr().out.endswith("both: 1 spaces, 64 vectors\n")
    drop = ["prune", folder, "--space", filled.key.id[:9], "--out", str(tmp_path / "less")]
    main(["teacher", *drop])
    assert capsys.readouterr().out.endswith("less: 0 spaces, 0 vectors\n")
    main(["teacher", "ls", str(tmp_path / "less")])
    assert "has no spaces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "absent"], "error: no teacher store at absent: there is no such folder"),
        (["verify", "tests"], "tests has no spaces: it is empty, or not a teacher store"),
        (["info", "STORE", "--space", "x"], "has 0 spaces named 'x'; it has: model-"),
        (["verify", "STORE", "--texts", "absent.txt"], "error: no file absent.txt"),
        (["verify", "STORE", "--texts", "README.md"], "must end with one of .txt, .parquet"),
        (["verify", "STORE", "--texts", "x.txt", "--bound", "7"], "--bound is a cosine, not 7"),
        (["merge", "STORE", "--out", "STORE"], "is one of the old stores"),
    ],
)
def test_the_command_line_names_what_is_wrong(filled, arguments, message):
    folder = str(filled.folder)
    with pytest.raises(SystemExit, match=message):
        main(["teacher", *(folder if word == "STORE" else word for word in arguments)])


def test_texts_are_read_from_every_kind_of_file(tmp_path):
    table = Dataset.from_dict({"id": [1, 2], "text": ["a", None], "n": [["x"], ["y"]]})
    table.to_parquet(tmp_path / "t.parquet")
    table.to_json(tmp_path / "t.jsonl")
    table.select_columns(["text"]).to_csv(tmp_path / "t.csv", index=False)
    assert read_texts(tmp_path / "t.parquet", "text") == ["a"]
    assert read_texts(tmp_path / "t.jsonl", "text") == ["a"]
    assert read_texts(tmp_path / "t.csv") == ["a"]
    for column, message in (
        (None, "3 columns; name one; it has: id, text, n"),
        ("txt", "no column 'txt'; it has: id, text, n"),
        ("id", "column 'id' of .* must hold texts, not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            read_texts(tmp_path / "t.parquet", column)
