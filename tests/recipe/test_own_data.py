"""A user's own files: what is read, what columns are taken for, and what is said of the rest."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data import sources
from st_jv5.recipe.data.prepare import read_rows
from st_jv5.recipe.data.rows import Rows
from st_jv5.recipe.data.sources import with_columns
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.strict import RecipeError
from st_jv5.roles import roles_of
from tests.recipe.test_config import DEMO

FAQ = [{"question": f"question {i}", "answer": f"answer {i}"} for i in range(12)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in a file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if plain.endswith((".csv", ".tsv")):
        beside = path.with_name("unpacked")
        with beside.open("w", newline="") as file:
            tabs = "\t" if plain.endswith(".tsv") else ","
            writer = csv.DictWriter(file, [*rows[0]], delimiter=tabs)
            writer.writeheader()
            writer.writerows(rows)
        content = beside.read_bytes()
        beside.unlink()
    elif plain.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        content = json.dumps(rows).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    elif path.suffix == ".zst":
        content = pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def read(tmp_path):
    """``read(path, **settings)``: the rows of a set; columns that are not said are looked up."""

    def read(path: Any, **settings: Any) -> Rows:
        path = str(path) if isinstance(path, Path) else path
        spec = DataSet(path, folder=str(tmp_path), **settings)
        if not spec.columns:
            spec = with_columns("own", spec)
        return read_rows("own", spec, 0, tmp_path / "prepared")

    return read


def in_order(rows: Rows) -> list[tuple[Any, ...]]:
    """The rows' values, sorted: they lie in the order of the seed."""
    return sorted(tuple(row.values()) for row in rows)


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz",
     "a.csv.gz", "a.csv.zst", "a.tsv.gz", "A.CSV"],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path, read):
    plain = name.lower() if name.isupper() else name
    path = write(tmp_path / plain, FAQ).rename(tmp_path / name)
    assert in_order(read(path)) == sorted(tuple(row.values()) for row in FAQ)


def test_lines_of_a_text_file_are_texts(tmp_path, read):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n   \n")
    assert in_order(read("a.txt")) == [("one",), ("two",)]


def test_a_folder_a_pattern_and_a_list_are_all_their_files(tmp_path, read):
    for number in range(4):
        write(tmp_path / "faq" / f"part_{number}.jsonl", FAQ[3 * number : 3 * number + 3])
    (tmp_path / "faq" / "README.md").write_text("no rows")
    parts = [f"faq/part_{number}.jsonl" for number in range(4)]
    whole = sorted(tuple(row.values()) for row in FAQ)
    for path in ("faq", "faq/*.jsonl", "**/part_?.jsonl", tuple(parts), ("faq", parts[0])):
        assert in_order(read(path)) == whole
    assert len(read(("faq/part_[01].jsonl", parts[3]))) == 9


def test_a_name_with_a_bracket_is_no_pattern(tmp_path, read):
    write(tmp_path / "x[1].jsonl", FAQ[:2])
    write(tmp_path / "x1.jsonl", FAQ)
    assert len(read("x[1].jsonl")) == 2


def test_a_path_is_seen_from_the_recipe_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "recipes" / "faq.jsonl", FAQ)
    write(tmp_path / "home" / "texts.csv", [{"text": f"text {i}"} for i in range(20)])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(DEMO.read_text())
    tree.pop("data_folder")
    tree["data_sets"] = {"faq": {"path": "faq.jsonl"}, "texts": {"path": "~/texts.csv"}}
    tree["stage1"] = {"data": {"faq": 1}, "replay": {"texts": 1}, "steps": 1}
    tree["adapters"] = {}
    path = tmp_path / "recipes" / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    sets = load_recipe("recipes/own.yaml").data_sets
    assert sets["faq"].columns == {"query": "question", "positive": "answer"}
    assert (sets["faq"].kind, sets["texts"].kind) == ("pairs", "texts")
    assert len(read_rows("faq", sets["faq"], 0, tmp_path / "out")) == 12
    assert len(read_rows("texts", sets["texts"], 0, tmp_path / "out")) == 20


def test_a_set_that_the_command_line_adds_is_seen_from_where_the_recipes_are(tmp_path, monkeypatch):
    write(tmp_path / "recipes" / "rows" / "faq.jsonl", FAQ)
    write(tmp_path / "recipes" / "rows" / "new.jsonl", FAQ)
    tree = yaml.safe_load(DEMO.read_text())
    tree |= {"data_folder": "rows", "adapters": {}, "data_sets": {"faq": {"path": "faq.jsonl"}}}
    tree["stage1"] = {"data": {"faq": 1}, "steps": 1}
    (tmp_path / "recipes" / "own.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "recipes" / "more.yaml").write_text("extends: own.yaml\ndata_folder: rows\n")
    monkeypatch.chdir(tmp_path)
    for recipe in ("recipes/own.yaml", "recipes/more.yaml"):
        for override in ("new={path: new.jsonl}", "faq={path: new.jsonl}", "faq.path=new.jsonl"):
            name = re.split("[.=]", override)[0]
            found = load_recipe(recipe, [f"data_sets.{override}"]).data_sets[name]
            assert found.columns == {"query": "question", "positive": "answer"}
            assert found.place(str(found.path)) == tmp_path / "recipes" / "rows" / "new.jsonl"


@pytest.mark.parametrize(
    "path",
    ["faq.csv", "~/faq.jsonl", "./faq", "faq/*", "/data/faq", "faq.xlsx", "a/b/c", "faq.jsonl.zst"],
)
def test_a_path_of_a_file_is_never_a_hub_id(path):
    assert DataSet(path).is_local


@pytest.mark.parametrize("path", ["org/words-v2", "squad", "org/set.v1.5", "mteb/stsbenchmark-sts"])
def test_other_names_are_hub_ids_unless_such_a_folder_is_there(path, tmp_path):
    assert not DataSet(path, folder=str(tmp_path)).is_local
    (tmp_path / path).mkdir(parents=True)
    assert DataSet(path, folder=str(tmp_path)).is_local


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = {"question": "q", "answer": "a"}
PACKED = gzip.compress(jsonl(GOOD), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", r"/a.jsonl is empty: it has no row"),
        ("a.csv", b"question,answer\n", r"/a.csv is empty: it has no row"),
        ("a.jsonl", jsonl(GOOD) + b'{"question": "q', r"/a.jsonl, line 2: not JSON"),
        ("a.jsonl", jsonl(GOOD) + b"[1]\n", r"/a.jsonl, line 2: a row must be an object"),
        ("a.csv", "question,answer\ncaf\xe9,x\n".encode("latin-1"), r"a.csv is not UTF-8: byte 0xe9"
         r" at line 2; save the file as UTF-8"),
        ("a.csv", b"question,answer\na,b,c\n", r"row 0 of .*/a.csv \(line 2\) has 3 fields"),
        ("a.jsonl.gz", PACKED[:-9], r"/a.jsonl.gz cannot be unpacked: "),
        ("a.jsonl.zst", b"none", r"/a.jsonl.zst cannot be unpacked: "),
        ("a.parquet", b"PAR1", r"/a.parquet cannot be read as parquet: "),
        ("a.xlsx", b"PK", r"/a.xlsx must end with one of .txt, .parquet, .jsonl, .json, .csv"),
        ("a.jsonl", jsonl({"question": 5, "answer": "a"}),
         r"column 'question' of .*/a.jsonl holds 5 in row 0 \(counted from 0\), not text"),
        ("a.csv", b"frage;antwort\na;b\n", r"known as text: it has frage;antwort.*"
         r"its columns stand between ';': save them with commas"),
        ("a.csv", b"frage,antwort\na,b\n", r"known as text: it has frage, antwort; wanted"),
        ("a.jsonl", jsonl({"messages": [{"role": "user", "content": "x"}]}),
         r"/a.jsonl has chats in column 'messages'; wanted are texts: query and positive"),
        ("a.jsonl", jsonl({"question": "q", "answer": {"text": ["x"]}}),
         r"has {'text': \['x'\]} in column 'answer', row 0 \(counted from 0\), as positive"),
        ("a.jsonl", jsonl({"sentence1": "a", "sentence2": "b", "label": 1}),
         r"Is it a score\? Name it score, or say columns: {query: sentence1, positive: sent"),
    ],
    ids=lambda one: str(one)[:20],
)  # fmt: skip
def test_what_cannot_be_read_is_named_by_set_file_and_place(name, content, said, tmp_path, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=rf"data_sets.own.*{said}"):
        read(name)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("faq.jsonl", r"no file .*{folder}/faq.jsonl; paths are relative to the recipe's folder"),
        ("~/none.jsonl", rf"no file {os.path.expanduser('~')}/none.jsonl"),
        ("none/*.jsonl", r"no file matches .*{folder}/none/\*.jsonl"),
        ("empty", r"the folder .*{folder}/empty has no file to read; a file must end with"),
        (("a.parquet", "b.jsonl"), r"parquet beside files of other kinds: a.parquet, b.jsonl"),
        ("org/set", r"data_sets.own.columns is missing: of a data set on the Hub"),
    ],
)
def test_a_path_without_rows_is_named_in_full(path, said, tmp_path, read):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.parquet", FAQ)
    write(tmp_path / "b.jsonl", FAQ)
    with pytest.raises(RecipeError, match=said.replace("{folder}", tmp_path.name)):
        read(path)


# ---------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("row", "roles", "kind"),
    [
        ({"Question": "a", "Answer": "b", "Id": 3}, "query positive", "pairs"),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "query positive negative_1", "pairs"),
        ({"anchor": "a", "positive": "b", "negative_2": "d", "negative_1": "c"},
         "query positive negative_1 negative_2", "pairs"),
        ({"query": "a", "text": "b", "hard negative": "c"}, "query positive negative_1", "pairs"),
        ({"sentence1": "a", "sentence2": "b", "Similarity Score": 0.5}, "query positive score",
         "scored"),
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "query positive score", "scored"),
        ({"text": "a", "label": 3, "label_text": "x"}, "text label", "labelled"),
        ({"sentence": "a", "Category": "x"}, "text label", "labelled"),
        ({"query": "a", "intent": "x"}, "text label", "labelled"),
        ({"content": "a", "url": "b"}, "text", "texts"),
        ({"anything": "a"}, "text", "texts"),
        ({"question": "a", "answer": "b", "category": "x"}, "query positive", "pairs"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "query positive negative_1", "pairs"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, dict) else None,
)  # fmt: skip
def test_roles_and_kind_follow_from_the_names_of_columns(row, roles, kind, tmp_path):
    write(tmp_path / "a.jsonl", [row])
    spec = with_columns("own", DataSet(str(tmp_path / "a.jsonl")))
    assert " ".join(spec.columns) == roles
    assert spec.kind == kind


def test_a_kind_that_is_said_chooses_the_columns():
    table = {"question": ["a"], "answer": ["b"], "topic": ["x"], "text": ["c"]}
    assert roles_of(table, "labelled") == {"text": "text", "label": "topic"}
    assert roles_of(table, "texts") == {"text": "text"}
    assert (
        roles_of(table, "pairs") == roles_of(table) == {"query": "question", "positive": "answer"}
    )
    with pytest.raises(ValueError, match="no column that is known as score"):
        roles_of(table, "scored")


def test_numbers_and_dates_of_a_csv_and_dates_of_a_jsonl_are_texts(tmp_path, read):
    rows = [{"query": "2024-01-01", "positive": "007"}, {"query": "5", "positive": "1e3"}]
    for name in ("a.csv", "a.jsonl", "a.tsv"):
        assert in_order(read(write(tmp_path / name, rows))) == [("2024-01-01", "007"), ("5", "1e3")]


@pytest.mark.parametrize("of", [int, float, bool])
def test_numbers_in_the_place_of_texts_are_named_by_set_column_and_file(of, tmp_path, read):
    for name in ("a.parquet", "a.jsonl"):
        path = write(
            tmp_path / name, [{"question": of(i), "answer": f"answer {i}"} for i in (1, 2)]
        )
        with pytest.raises(
            RecipeError, match=rf"data_sets.own: column 'question' of .*/{name} hol"
        ):
            read(path)


# ------------------------------------------------------------------------------------------ lists


def test_flagembeddings_lists_become_a_row_of_each_positive(tmp_path, read):
    rows = [{"query": f"q{i}", "pos": [f"p{i}", f"r{i}"], "neg": [f"n{i}", f"m{i}"], "id": str(i)}
            for i in range(5)]  # fmt: skip
    expected = sorted((f"q{i}", f"{p}{i}", f"n{i}", f"m{i}") for i in range(5) for p in "pr")
    for name in ("a.jsonl", "a.parquet"):
        found = read(write(tmp_path / name, rows))
        assert found.roles == ["query", "positive", "negative_1", "negative_2"]
        assert in_order(found) == expected


def test_tevatrons_passages_are_read_with_their_titles(tmp_path, read):
    rows = [
        {
            "query_id": str(i),
            "query": f"q{i}",
            "positive_passages": [{"docid": "1", "title": f"t{i}", "text": f"p{i}"}],
            "negative_passages": [{"docid": "2", "title": "", "text": f"n{i}"}],
        }
        for i in range(5)
    ]
    expected = [(f"q{i}", f"t{i} p{i}", f"n{i}") for i in range(5)]
    for name in ("a.jsonl", "a.parquet"):
        assert in_order(read(write(tmp_path / name, rows))) == expected


def test_lists_of_a_set_of_the_hub_are_spread_too(tmp_path, read, monkeypatch):
    rows = [{"query": f"q{i}", "pos": [f"p{i}", f"r{i}"], "neg": [f"n{i}", "  "]} for i in range(5)]
    monkeypatch.setattr(sources, "load_dataset", lambda *args, **settings: Dataset.from_list(rows))
    columns = {"query": "query", "positive": "pos", "negative_1": "neg"}
    expected = sorted((f"q{i}", f"{p}{i}", f"n{i}") for i in range(5) for p in "pr")
    assert in_order(read("org/set", columns=columns)) == expected


def test_a_passage_without_text_is_named_by_file_and_row(tmp_path, read):
    rows = [{"query": "q", "pos": ["p"]}, {"query": "r", "pos": ["p", {"id": 3}]}]
    said = r"'pos' of .*a.jsonl holds {'id': 3} in row 1 \(counted from 0\), not a text, nor a pass"
    with pytest.raises(RecipeError, match=said):
        read(write(tmp_path / "a.jsonl", rows))


def test_as_many_negatives_are_taken_as_half_of_the_rows_have():
    table = {"query": ["a"] * 4, "pos": ["b"] * 4, "negatives": [["c"], ["c"] * 3, ["c"] * 3, []]}
    assert len(roles_of(table)) == 2 + 3
    many = {"query": ["a"], "pos": ["b"], "neg": [["c"] * 99]}
    assert [*roles_of(many)][-1] == "negative_7"


def test_a_row_with_fewer_negatives_is_kept_with_one_of_another_row(tmp_path, read, caplog):
    caplog.set_level(logging.INFO, "st_jv5.recipe")
    rows: list[dict[str, Any]] = [
        {"query": f"q{i}", "positive": f"p{i}", "negative_1": f"n{i}",
         "negative_2": [f"m{i}", None, "", "   "][i % 4]} for i in range(40)
    ]  # fmt: skip
    for row in rows[20:]:
        del row["negative_2"]
    columns = {role: role for role in rows[0]}
    found = list(read(write(tmp_path / "a.jsonl", rows), columns=columns))
    assert len(found) == 40
    given = {f"m{i}" for i in range(0, 20, 4)}
    assert {row["negative_2"] for row in found} == given
    own = [row for row in found if row["query"] in {f"q{i}" for i in range(0, 20, 4)}]
    assert all(row["negative_2"][1:] == row["query"][1:] for row in own)
    assert all(row["negative_1"][1:] == row["query"][1:] for row in found)
    assert "own: 40 of 40 rows (35 given another row's negative_2)" in caplog.text


def test_lists_of_unequal_length_lose_no_row(tmp_path, read):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i}", f"m{i}"][: i % 3]}
            for i in range(30)]  # fmt: skip
    found = list(read(write(tmp_path / "a.jsonl", rows)))
    assert len(found) == 30
    assert all(row["negative_1"] and row["negative_2"] for row in found)
    mine = {row["query"]: row["negative_1"] for row in found}
    assert all(mine[f"q{i}"] == f"n{i}" for i in range(30) if i % 3)


def test_a_negative_that_is_held_out_is_replaced(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negative": f"p{(i + 1) % 40}"}
            for i in range(40)]  # fmt: skip
    path = write(tmp_path / "a.jsonl", rows)
    spec = with_columns("own", DataSet(str(path), held_out=10))
    found = list(read_rows("own", spec, 0, tmp_path / "prepared"))
    assert len(found) == 30
    assert {row["negative_1"] for row in found} <= {row["positive"] for row in found}


@pytest.mark.parametrize("nothing", [None, "", "   ", "\n\t"])
def test_rows_without_a_text_are_dropped_and_told_by_role(nothing, tmp_path, read, caplog):
    caplog.set_level(logging.INFO, "st_jv5.recipe")
    rows = [{"query": f"q{i}", "positive": nothing if i < 20 else f"p{i}"} for i in range(40)]
    del rows[3]["positive"]
    assert len(read(write(tmp_path / "a.jsonl", rows))) == 20
    assert "own: 20 of 40 rows (20 empty in positive)" in caplog.text


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_negatives_that_no_row_has_are_refused(nothing, tmp_path, read):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negative": nothing} for i in range(9)]
    with pytest.raises(RecipeError, match=r"column 'negative' of .*a.jsonl has no text for negati"):
        read(write(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("kind", "column", "values", "said"),
    [
        ("labelled", "label", ["a", None, "b"], r"'label' of .*a.jsonl has no label in row 1 "),
        ("labelled", "label", [["a"], "b", ["c"]], r"'label' of .*a.jsonl holds 'b' in row 1 .*an"),
        ("scored", "score", [0.5, None, 1], r"'score' of .*a.jsonl has no score in row 1 "),
        ("scored", "score", [0.5, 1, "high"], r"'score' of .*a.jsonl .*'high' in row 2 .*not a s"),
        ("scored", "score", [0.5, float("nan"), 1], r"'score' of .*a.jsonl has no score in row 1 "),
    ],
)  # fmt: skip
def test_labels_and_scores_that_are_none_are_named_by_file_and_row(
    kind, column, values, said, tmp_path, read
):
    texts = {"labelled": ("text",), "scored": ("query", "positive")}[kind]
    rows = [{**{t: f"{t} {i}" for t in texts}, column: v} for i, v in enumerate(values)]
    write(tmp_path / "own" / "a.jsonl", rows)
    write(tmp_path / "own" / "_.jsonl", [rows[0] | {t: f"first {t}" for t in texts}])
    with pytest.raises(RecipeError, match=said):
        read("own", kind=kind)


def test_labels_are_read_as_they_stand_there(tmp_path, read):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(4)]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert read(write(tmp_path / name, rows)).labels == {"0", "1"}
    several = [{"text": f"text {i}", "labels": ["a", "b"][: i % 3]} for i in range(1, 6)]
    assert {tuple(row["label"]) for row in read(write(tmp_path / "b.jsonl", several[:2]))} == {
        ("a",), ("a", "b"),
    }  # fmt: skip
