"""Rows of a user's file: one reader of roles, for recipes, for tasks of one's own, for choosing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from st_jv5.choosing import read_examples
from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data import prepare
from st_jv5.recipe.data.sources import with_columns
from st_jv5.roles import read_rows, roles_of
from st_jv5.texts import stem


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


FILES: dict[str, list[dict[str, Any]]] = {
    "question and answer": [{"question": f"q{i}", "answer": f"a{i}", "id": i} for i in range(9)],
    "an answer that is missing": [{"question": f"q{i}", "answer": [f"a{i}", None, " "][i % 3]}
                                  for i in range(9)],
    "lists": [{"query": f"q{i}", "pos": [f"p{i}", "", f"r{i}"], "neg": [f"n{i}", f"m{i}"]}
              for i in range(9)],
    "passages": [{"query": f"q{i}", "positive_passages": [{"title": f"t{i}", "text": f"p{i}"}],
                  "negative_passages": [{"text": f"n{i}"}]} for i in range(9)],
    "scores": [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i / 3} for i in range(9)],
    "labels": [{"sentence": f"t{i}", "Topic": f"x{i % 3}"} for i in range(9)],
    "several labels": [{"text": f"t{i}", "labels": ["x", "y"][: 1 + i % 2]} for i in range(9)],
    "texts": [{"text": f"t{i}"} for i in range(9)],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_a_recipe_reads_it(name, tmp_path):
    path = write(tmp_path / "own.jsonl", FILES[name])
    spec = with_columns("own", DataSet(str(path)))
    expected = [dict(row) for row in prepare.read_rows("own", spec, 0, tmp_path / "data")]
    kind, found = read_rows(path)
    assert kind == spec.kind
    assert sorted(map(str, found)) == sorted(map(str, expected))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"when": "now", "who": "me"}], "has no column that is known as text: it has when, who"),
        ([{"question": "q", "answer": 5}], r", row 0 \(counted from 0\): 5 as positive is not tex"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], ", row 1 .*: it has no label"),
        ([{"query": "a", "positive": "b", "score": "high"}], "row 0 .*: the score 'high' is no nu"),
        ([{"query": "a", "positive": " "}], "is empty: it has no row with a text"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_row(rows, said, tmp_path):
    with pytest.raises(ValueError, match=rf"own\.jsonl.*{said}"):
        read_rows(write(tmp_path / "own.jsonl", rows))


def test_examples_to_choose_by_are_read_from_the_file_that_a_recipe_is_made_of(tmp_path):
    path = write(tmp_path / "faq.jsonl", FILES["question and answer"])
    assert read_examples(path) == ("pairs", [(f"q{i}", f"a{i}") for i in range(9)])
    assert read_examples(path, 3)[1] == [("q0", "a0"), ("q4", "a4"), ("q8", "a8")]
    with pytest.raises(ValueError, match=r"texts\.jsonl has single texts, which are no examples"):
        read_examples(write(tmp_path / "texts.jsonl", FILES["texts"]))


def test_a_negative_that_less_than_half_of_the_rows_have_gets_no_role():
    """By columns as by lists: of the rows that have any."""
    pairs = {"query": ["q"] * 6, "positive": ["p"] * 6}
    columns = {
        "negative_1": ["n", None, "n", "n", "", None],
        "negative_2": ["m", "m", None, " ", None, None],
        "negative_3": ["o", None, None, None, None, None],
    }
    assert list(roles_of(pairs | columns)) == ["query", "positive", "negative_1", "negative_2"]
    lists = {"negatives": [["n", "m", "o"], ["n", "m", ""], ["n"], ["n"], [], None]}
    assert list(roles_of(pairs | lists)) == ["query", "positive", "negative_1", "negative_2"]
    alone = {"negative_1": ["n", *[None] * 5], "negative_2": [None, "m", *[None] * 4],
             "negative_3": [None, None, "o", *[None] * 3]}  # fmt: skip
    assert list(roles_of(pairs | alone)) == ["query", "positive", *(f"negative_{i}" for i in "123")]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/faq.jsonl.gz", "faq"),
        ("a.b.csv", "a.b"),
        ("A.CSV", "A"),
        ("faq", "faq"),
        ("x.gz", "x.gz"),
    ],
)
def test_a_kind_of_text_is_the_files_name_without_its_ending_packed_or_not(path, name):
    assert stem(path) == name
    if stem(path) != Path(path).name:
        assert DataSet(path).kind_of_text == name
