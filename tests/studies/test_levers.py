"""The arms of eval/studies/levers.yaml, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eval.studies import levers
from eval.studies.levers import ALL, START, Levers, result, score, table
from st_jv5.files import write_json
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.strict import RecipeError, build

PLAN = build(Levers, yaml.safe_load((Path(levers.__file__).parent / "levers.yaml").read_text()), "")


def test_before_is_how_the_recipe_was_and_all_is_the_recipe():
    before = load_recipe(PLAN.recipe, PLAN.changes("before"))
    assert (before.student.pooling, before.student.prompts) == ("lasttoken", "paper")
    assert (before.stage1.fit_projection, before.stage1.replay) == (0, {})
    assert PLAN.changes(ALL) == PLAN.changes(START) == ()


@pytest.mark.parametrize("arm", [arm for arm in PLAN.arms if arm != "before"])
def test_every_other_arm_changes_something_of_before(arm):
    before = load_recipe(PLAN.recipe, PLAN.changes("before"))
    own = load_recipe(PLAN.recipe, PLAN.changes(arm))
    assert (own.student, own.stage1) != (before.student, before.stage1)


def test_seeds_stand_side_by_side_and_an_arm_of_other_settings_is_refused(tmp_path):
    for seed, near in ((0, 61.0), (1, 62.5)):
        means = {"0.5": {"near": near, "far": 70.0, "both": (near + 70) / 2}}
        write_json(result(tmp_path, "rate", seed), {"fingerprint": "other", "means": means})
    (row,) = table(["rate", ALL], (0, 1), tmp_path).rows
    assert row == ["rate", "0.5", "61.0 / 62.5", "70.0 / 70.0", "65.5 / 66.2"]
    with pytest.raises(RecipeError, match=r"rate-seed0.json was made with other settings"):
        score(PLAN, "rate", 0, tmp_path, ())
