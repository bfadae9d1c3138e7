"""Rows that are kept out of training: always the same, and nothing of theirs is trained on."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from st_jv5.recipe.config import DataSet
from st_jv5.recipe.context import Run
from st_jv5.recipe.data.decontaminate import text_hash
from st_jv5.recipe.data.halves import halves
from st_jv5.recipe.data.prepare import FORMAT, held_texts, read_held_out, read_rows
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


def test_held_out_rows_have_the_hard_negatives_of_their_own_and_no_others(tmp_path):
    """Under test they would be documents that the file does not have there."""
    rows = [{"q": f"question {i}", "d": f"answer {i}", "n": None if i % 9 else f"no answer {i}"}
            for i in range(90)]  # fmt: skip
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DataSet(str(path), {"query": "q", "positive": "d", "negative_1": "n"}, held_out=12)
    for seed in range(3):
        held = read_held_out("faq", spec, seed, tmp_path / "data")
        for row in held:
            number = int(row["query"].split()[1])
            assert row["negative_1"] == (f"no answer {number}" if number % 9 == 0 else "")
    # And where none of those that are drawn has any.
    rows = [row | {"n": None} for row in rows[1:]] + [rows[0]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = read_held_out("faq", spec, 0, tmp_path / "data")
    assert len(held) == 12
    assert {row["negative_1"] for row in held} == {""}


def texts_of(rows: list[dict]) -> set[int]:
    return {text_hash(row[role]) for row in rows for role in ("query", "positive", "text")
            if role in row}  # fmt: skip


@pytest.mark.parametrize("answers", [40, 7])
def test_no_text_of_one_half_stands_in_the_other(answers):
    draw = random.Random(answers)
    rows = [{"query": f"question {draw.randrange(90)}", "positive": f"Answer {i % answers}."}
            for i in range(60)]  # fmt: skip
    rows += [{"query": f"another {i}", "positive": f"answer {i}"} for i in range(40)]
    one, other = halves(rows)
    assert texts_of(one).isdisjoint(texts_of(other))
    assert len(one) + len(other) == 100
    if answers == 40:
        assert abs(len(one) - len(other)) <= 20
    texts = [{"text": f"text {i % 30}", "label": str(i % 2)} for i in range(50)]
    one, other = halves(texts)
    assert texts_of(one).isdisjoint(texts_of(other))
    assert halves([]) == ([], [])


def test_texts_with_several_labels_are_not_held_out_for_nothing(tmp_path):
    path = tmp_path / "topics.jsonl"
    rows = [{"text": f"text {i}", "labels": ["a", "b"][: 1 + i % 2]} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DataSet(str(path), {"text": "text", "label": "labels"}, held_out=9)
    told = r"data_sets.topics: held_out: 9 rows .* 'labels' has several labels in a row, of which"
    with pytest.raises(RecipeError, match=told):
        read_held_out("topics", spec, 0, tmp_path / "data")


def test_rows_of_another_form_have_another_number(tmp_path):
    """What is written decides what :data:`FORMAT` must be: prepared folders are taken by it."""
    rows = [{"q": f"question {i}", "d": f"answer {i}", "n": None if i % 2 else f"no {i}",
             "l": i % 3, "s": i / 2} for i in range(30)]  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256()
    for columns in (
        {"query": "q", "positive": "d", "negative_1": "n"},
        {"query": "q", "positive": "d", "score": "s"},
        {"text": "q", "label": "l"},
    ):
        spec = DataSet("own.jsonl", columns, held_out=5, folder=str(tmp_path))
        for read in (read_rows, read_held_out):
            found = read("own", spec, 0, tmp_path / "data")
            names = sorted(one.name for one in found.folder.iterdir())
            digest.update(repr((names, found.roles, list(found), found.content)).encode())
            digest.update(json.dumps(found.told, sort_keys=True).encode())
    assert (FORMAT, digest.hexdigest()[:16]) == (2, "a5b1594948dde947"), (
        "raise FORMAT: rows have changed"
    )


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
            "similarity.held_out goes with kind pairs, scored, labelled, not synset_pairs: no task",
        ),
        (
            "wikipedia-text={path: x.txt, columns: {text: text}, held_out: 9}",
            r"text.held_out goes with kind pairs, scored, labelled, not texts: no task can be made",
        ),
    ],
)
def test_a_number_that_cannot_be_held_out_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [f"data_sets.{override}"])
