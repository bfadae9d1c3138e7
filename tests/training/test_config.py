"""The strict reader of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from st_jv5 import Schedule
from training.config import RecipeError, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))
DEMO = next(path for path in RECIPES if path.stem == "demo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert set(recipe.adapters) == {"retrieval", "text-matching", "clustering", "classification"}


def test_settings_on_the_command_line_win():
    recipe = load_recipe(DEMO, ["stage1.steps=7", "adapters.retrieval.loss.temperature=0.1"])
    assert recipe.stage1.steps == 7
    assert recipe.adapters["retrieval"].loss == {"temperature": 0.1}


def test_a_weight_may_move_over_the_steps():
    settings = "{gor_weight: {start: 0.0, end: 1.0, steps: 10}}"
    recipe = load_recipe(DEMO, [f"adapters.retrieval.loss={settings}"])
    assert recipe.adapters["retrieval"].loss == {"gor_weight": Schedule(0.0, 1.0, steps=10)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.stepz=7", r"unknown setting stage1.stepz; did you mean 'steps'"),
        ("stage1.steps=many", r"stage1.steps must be int, not 'many'"),
        ("stage1.learning_rate=1e-4", r"reads 1e-4 as text, write it with a dot"),
        ("stage1.steps=0", "stage1.steps must be above 0, not 0"),
        ("stage1.data={nope: 1}", "stage1.data: unknown data set 'nope'"),
        ("stage1.data={wordnet-lemmas: -1}", "the weight must be above 0"),
        ("stage1.data={}", "stage1.data names no data set"),
        ("adapters.cooking={data: {wordnet-lemmas: 1}, steps: 1}", "unknown task 'cooking'"),
        ("adapters.retrieval.average=[15]", "step 15 has no checkpoint"),
        ("precision=int4", "precision must be one of auto, float32, bfloat16"),
        ("stage1.dim_weights=[1]", "dim_weights has 1 entries for 5"),
        ("data_sets.wordnet-lemmas.columns={text: gloss}", "must name positive, query"),
        ("stage1.batch_sizes={nope: 8}", "stage1.batch_sizes: stage1.data has no 'nope'"),
        ("stage1.max_tokens={wordnet-lemmas: 0}", "max_tokens.wordnet-lemmas must be above 0"),
        ("stage1.temperature=0.0", "stage1.temperature must be above 0, not 0.0"),
        (
            "adapters.retrieval.loss={gor_weight: {start: 0.0, stop: 1.0}}",
            r"unknown setting adapters.retrieval.loss.gor_weight.stop; did you mean",
        ),
        (
            "adapters.retrieval.loss={gor_weight: {start: -1.0, end: 1.0, steps: 3}}",
            "retrieval.loss.gor_weight: weights must be finite",
        ),
        ("teacher.model=3", "teacher.model must be str, not 3"),
        ("stage1", "--set wants a.b=value"),
    ],
)
def test_what_cannot_be_run_is_named(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override])


def test_missing_settings_and_files_are_named(tmp_path):
    tree = yaml.safe_load(DEMO.read_text())
    del tree["teacher"]["model"]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=r"teacher.model is missing"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "absent.yaml")
