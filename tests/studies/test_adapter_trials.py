"""The arms of eval/studies/adapter_trials.yaml, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eval.studies import adapter_trials
from eval.studies.adapter_trials import Trials, file_of, score, table
from st_jv5.files import write_json
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.strict import RecipeError, build
from st_jv5.task_table import BASE

PATH = Path(adapter_trials.__file__).with_suffix(".yaml")
PLAN = build(Trials, yaml.safe_load(PATH.read_text()), "")


@pytest.mark.parametrize("arm", PLAN.arms)
def test_every_arm_changes_its_own_phase_alone(arm):
    recipe, own = load_recipe(PLAN.recipe), PLAN.arms[arm]
    changed = load_recipe(PLAN.recipe, PLAN.changes(arm))
    assert (changed.adapters[own.task] == recipe.adapters[own.task]) == arm.endswith("as it is")
    others = [task for task in recipe.adapters if task != own.task]
    assert all(changed.adapters[task] == recipe.adapters[task] for task in others)


def test_the_table_tells_points_above_the_base_apart_by_text_and_labels(tmp_path):
    base = {
        "TopicClusteringValidation": 40.0,
        "HeldOutTopicClusteringValidation": 41.0,
        "DebianSectionClusteringValidation": 45.0,
        "FactbookClusteringValidation": 80.0,
        "WordNetSTSValidation": 50.0,
    }
    labels = {"wikipedia": ["Arts"]}
    for arm, scores in (
        (BASE, {"0": base}),
        ("clustering: as it is", {"1": {t: v + len(t) / 10 for t, v in list(base.items())[:4]}}),
    ):
        told = {"fingerprint": "other", "scores": scores, "labels": labels, "seconds": 1}
        write_json(file_of(tmp_path, arm), told)
    run = Run(load_recipe(PLAN.recipe))
    found = table(PLAN, run, [BASE, *PLAN.arms], tmp_path)
    assert found.header == [
        *("", "strength", "clustering, near, seen labels", "clustering, near, new labels"),
        *("text-matching, near", "clustering, far, new labels"),
    ]
    assert found.rows == [
        ["base", "", 40.0, 43.0, 50.0, 80.0],
        ["clustering: as it is", "1", "+2.5", "+3.2", "", "+2.8"],
    ]
    with pytest.raises(RecipeError, match=r"clustering-as-it-is.json was made with other settings"):
        score(PLAN, "clustering: as it is", tmp_path / "base", tmp_path, ())
