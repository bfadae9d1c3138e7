"""Rows that are kept out of training: always the same, and nothing of theirs is trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from st_jv5.recipe.config import DataSet
from st_jv5.recipe.context import Run
from st_jv5.recipe.data.prepare import held_texts, read_held_out, read_rows
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.run import upstream
from st_jv5.recipe.strict import RecipeError
from tests.recipe.test_config import DEMO


def pairs_file(path: Path, rows: int) -> str:
    """Two questions to each answer; every tenth question stands with two answers."""
    found = [{"q": f"question {i}", "d": f"answer {i // 2}"} for i in range(rows)]
    found += [{"q": f"question {i}", "d": f"other answer {i}"} for i in range(0, rows, 10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture
def spec(tmp_path) -> DataSet:
    path = pairs_file(tmp_path / "faq.jsonl", 200)
    return DataSet(path, {"query": "q", "positive": "d"}, held_out=20)


def test_no_query_and_no_document_stands_on_both_sides(spec, tmp_path, caplog):
    caplog.set_level("INFO", "st_jv5.recipe")
    held = read_held_out("faq", spec, 0, tmp_path / "data")
    train = read_rows("faq", spec, 0, tmp_path / "data")
    assert len(held) == 20
    assert held.roles == train.roles == ["query", "positive"]
    for role in held.roles:
        assert set(held.column(role)).isdisjoint(train.column(role))
    lost = 220 - 20 - len(train)
    assert 0 < lost < 15
    told = f"faq: {len(train)} of 220 rows (20 held out, {lost} sharing a text with held-out rows)"
    assert told in caplog.text


def test_equal_but_for_case_and_punctuation_is_equal(tmp_path):
    rows = [{"q": f"Question {i}?", "d": f"Answer {i}."} for i in range(20)]
    rows += [{"q": f"question {i}", "d": f"more of {i}"} for i in range(20)]
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DataSet(str(path), {"query": "q", "positive": "d"}, held_out=10)
    held = read_held_out("faq", spec, 0, tmp_path)
    train = read_rows("faq", spec, 0, tmp_path)
    of = lambda found: {text.lower().strip("?") for text in found.column("query")}  # noqa: E731
    assert of(held).isdisjoint(of(train))


def test_rows_that_are_added_bring_no_trained_row_among_those_held_out(spec, tmp_path):
    before = set(read_held_out("faq", spec, 0, tmp_path / "data").column("query"))
    trained = set(read_rows("faq", spec, 0, tmp_path / "data").column("query"))
    pairs_file(Path(spec.path), 260)
    after = set(read_held_out("faq", spec, 0, tmp_path / "data").column("query"))
    assert len(before & after) > 10
    assert after.isdisjoint(trained)
    other = set(read_held_out("faq", spec, 1, tmp_path / "data").column("query"))
    assert len(other & after) < 10  # another seed, other rows


def test_the_rest_is_read_as_ever_and_limited_after(spec, tmp_path):
    plain = replace(spec, held_out=0)
    everything = list(read_rows("faq", plain, 0, tmp_path))
    assert len(everything) == 220
    texts = held_texts(read_held_out("faq", spec, 0, tmp_path))
    assert len(texts) >= 20
    barred = read_rows("faq", plain, 0, tmp_path, held=texts)
    assert list(barred) == list(read_rows("faq", spec, 0, tmp_path))
    assert len(read_rows("faq", replace(spec, limit=30), 0, tmp_path)) == 30
    assert list(read_held_out("faq", replace(spec, limit=30), 0, tmp_path)) == list(
        read_held_out("faq", spec, 0, tmp_path)
    )


def test_labelled_and_scored_rows_are_held_out_whole(tmp_path):
    path = tmp_path / "topics.jsonl"
    rows = [{"t": f"text {i}", "u": f"other {i}", "l": f"label {i % 3}", "s": i / 50}
            for i in range(50)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = DataSet(str(path), {"text": "t", "label": "l"}, held_out=9)
    scored = DataSet(str(path), {"query": "t", "positive": "u", "score": "s"}, "scored", held_out=9)
    for spec in (replace(labelled, kind="labelled"), scored):
        held = list(read_held_out("x", spec, 0, tmp_path))
        train = list(read_rows("x", spec, 0, tmp_path))
        assert (len(held), len(train)) == (9, 41)
        assert all(row not in train for row in held)
        assert set(held[0]) == set(spec.columns)


def test_a_set_that_is_too_small_is_told_with_its_numbers(spec, tmp_path):
    with pytest.raises(RecipeError, match=r"data_sets.faq: held_out: 220 of its 220 rows; leave"):
        read_held_out("faq", replace(spec, held_out=220), 0, tmp_path)


@pytest.fixture
def recipe(tmp_path):
    """The demo with own pairs, some of them held out, and the same answers as single texts."""
    path = pairs_file(tmp_path / "faq.jsonl", 200)
    tree = yaml.safe_load(DEMO.read_text())
    tree["output"] = str(tmp_path / "out")
    tree["data_sets"] = {
        "faq": {"path": path, "columns": {"query": "q", "positive": "d"}, "held_out": 20},
        "answers": {"path": path, "columns": {"text": "d"}, "kind": "texts"},
    }
    tree["adapters"] = {"clustering": {"data": {"answers": 1}, "steps": 1}}
    tree["stage1"] = {"data": {"faq": 1}, "steps": 1}
    file = tmp_path / "own.yaml"

    def write(**settings) -> str:
        tree["data_sets"]["faq"] |= settings
        file.write_text(yaml.safe_dump(tree))
        return str(file)

    return write


def test_no_other_set_of_a_recipe_trains_on_a_held_out_text(recipe):
    run = Run(load_recipe(recipe()))
    held = run.held_out("faq")
    assert len(held) == 20
    answers = set(run.rows["answers"].column("text"))
    assert set(held.column("positive")).isdisjoint(answers)
    assert len(answers) > 80


def test_what_was_trained_with_other_rows_held_out_is_told_apart(recipe):
    some, other = load_recipe(recipe()), load_recipe(recipe(held_out=30))
    none = load_recipe(recipe(held_out=0))
    assert upstream(some) != upstream(other) != upstream(none)
    assert "held_out" not in json.dumps(upstream(none), default=str)


def test_what_was_trained_beside_another_test_set_is_told_apart(recipe, tmp_path):
    """A set that no phase trains on decides by its held-out rows what others may train on."""
    pairs_file(tmp_path / "test.jsonl", 60)
    pairs_file(tmp_path / "other.jsonl", 60)
    file = recipe()
    tree = yaml.safe_load(Path(file).read_text())
    columns = {"query": "q", "positive": "d"}
    some = {"path": str(tmp_path / "test.jsonl"), "columns": columns, "held_out": 9}
    found = []
    changes = ({"path": str(tmp_path / "other.jsonl")}, {"where": {"q": "question 1*"}})
    for changed in ({}, {"license": "own"}, *changes):
        Path(file).write_text(
            yaml.safe_dump(tree | {"data_sets": {**tree["data_sets"], "test": some | changed}})
        )
        found.append(upstream(load_recipe(file)))
    assert found[0] == found[1]
    assert found[0] != found[2] != found[3] != found[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wordnet-lemmas.held_out=-1", "lemmas.held_out must be 0 or more rows, not -1"),
        (
            "wordnet-similarity.held_out=9",
            "similarity.held_out goes with kind pairs, scored, texts, labelled, not synset_pairs",
        ),
    ],
)
def test_a_number_that_cannot_be_held_out_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [f"data_sets.{override}"])
