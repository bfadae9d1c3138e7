"""How a run's model stands to the one that training began with, from records that are made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from st_jv5.cli import train as main
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.files import write_json
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.results.measure import BEFORE, CHANCE, START, TEACHER, start_model, without_far
from st_jv5.recipe.results.report import card_metadata, limits_of
from st_jv5.recipe.results.standing import ROUTED, Standing
from tests.conftest import MINILM
from tests.recipe.test_config import DEMO
from tests.recipe.test_means import draws, row

TYPES = {
    "WordNetSTS": "STS",
    "WikipediaRetrieval": "Retrieval",
    "OfficeHelpRetrieval": "Retrieval",
}
SIDES = (CHANCE, START, BEFORE, "base", "retrieval", TEACHER)


def standing(gaps: Mapping[str, Mapping[str, float]], *without: str) -> Standing:
    """The demo's recipe (wikipedia, wordnet) with everyone alike but for these gaps in score."""
    records = {
        who: {
            task: {**row(task, draws(i, gaps.get(who, {}).get(task, 0.0)), kind), "metric": "x"}
            for i, (task, kind) in enumerate(TYPES.items())
            if task not in without
        }
        for who in SIDES
        if who not in without
    }
    recipe = load_recipe(DEMO, ["evaluation.resamples=100"])
    only = {"retrieval": recipe.adapters["retrieval"]}
    return Standing(dataclasses.replace(recipe, adapters=only), records)


def test_far_below_the_start_is_said_and_so_is_near_above_it():
    hurt = {"WordNetSTS": 0.02, "WikipediaRetrieval": 0.02, "OfficeHelpRetrieval": -0.03}
    found = standing({"retrieval": hurt, "base": hurt})
    near, base_near, far, base_far, families = found.sentences
    assert "2.0 above all-MiniLM-L6-v2 [+2.0, +2.0]" in near.text
    assert "3.0 below all-MiniLM-L6-v2 [-3.0, -3.0]: on text of other kinds" in far.text
    assert far.text.startswith("Far, this model: ")
    assert "it is WORSE than the model that training began with" in far.text
    assert base_far.text.startswith("Far, its base without adapters: ")
    assert "it is WORSE than" in base_far.text
    assert families.text == "Worse than all-MiniLM-L6-v2: retrieval far."
    worse = [one.is_worse for one in (near, base_near, far, base_far, families)]
    assert worse == [False, False, True, True, True]


def test_everyones_near_and_far_means_stand_beside_the_start():
    found = standing({"retrieval": {"OfficeHelpRetrieval": -0.03}})
    means, families, adapters = found.summary()
    assert means.header[1] == "near: mean of 2 tasks"
    assert means.header[4] == "far: mean of 1 task"
    rows = {str(one[0]): one for one in means.rows}
    assert list(rows) == [
        *("routed", "base (stage 1)", "all-MiniLM-L6-v2 (start)", BEFORE, TEACHER),
    ]
    assert rows["routed"][5] == "-3.0 [-3.0, -3.0]"
    assert rows["base (stage 1)"][5] == "+0.0 [+0.0, +0.0]"
    told = {tuple(one[:2]): one[-1] for one in families.rows}
    assert told == {
        ("text-matching", "near"): "within noise",
        ("retrieval", "near"): "within noise",
        ("retrieval", "far"): "worse",
    }
    assert [one[:2] + one[-1:] for one in adapters.rows] == [
        ["retrieval", "near", "within noise"],
        ["retrieval", "far", "worse"],
    ]
    (line,) = found.advice.rows
    assert line[-1] == "worse than the base on far text: take `base` there"


def test_near_tasks_and_far_ones_stand_in_tables_of_their_own_with_a_row_per_task():
    found = standing({"retrieval": {"OfficeHelpRetrieval": -0.03}})
    near, far = found.every_task()
    assert near.caption.startswith("Near, text like the training text (wikipedia, wordnet):")
    assert far.caption.startswith("Far, text of other kinds (office_help):")
    assert "95%" in near.caption
    who = [CHANCE, "all-MiniLM-L6-v2 (start)", BEFORE, "base (stage 1)", ROUTED, TEACHER]
    gap = ["routed above base (stage 1)", "routed, % of the teacher", "metric"]
    assert far.header == ["task", *who, *gap]
    ((task, *scores, difference, share, metric),) = far.rows
    assert (task, difference, metric) == ("OfficeHelpRetrieval", "-3.0 [-3.0, -3.0]", "x")
    assert share == pytest.approx(100 * scores[4] / scores[5])
    assert far.shades == {(0, 7): pytest.approx(-0.3)}
    assert set(near.shades.values()) == {0.0}  # no difference, no colour
    assert [one[0] for one in near.rows] == ["WordNetSTS", "WikipediaRetrieval"]


def test_the_headline_plot_has_everyone_near_and_far_and_sizes_where_they_are_known():
    found = standing({})
    svg = found.headline().svg
    for who in (ROUTED, "base (stage 1)", "all-MiniLM-L6-v2 (start)", TEACHER):
        assert svg.count(f">{who}<") == 2  # near and far
    assert found.size_plot() is None
    for who, size in (("base", 22e6), ("retrieval", 22e6), (TEACHER, 109e6)):
        for each in found.records[who].values():
            each["parameters"] = size
    svg = found.size_plot().svg
    assert ">22<" in svg
    assert ">109<" in svg


def test_where_no_far_task_was_measured_the_report_says_so():
    found = standing({}, "OfficeHelpRetrieval")
    assert found.sentences[-1].text.startswith("No far task was measured: whether training hurt")
    assert found.summary()[0].header[-1] == "% of the teacher"
    assert "far" not in found.as_json()[ROUTED]


def test_a_base_without_a_way_of_its_own_gives_the_student_as_the_start():
    found = standing({"retrieval": {"OfficeHelpRetrieval": -0.03}}, START)
    assert "3.0 below the student before training [" in found.sentences[2].text
    assert f"{BEFORE} (start)" in [one[0] for one in found.summary()[0].rows]


def test_the_summary_file_has_every_score_and_near_and_far_means():
    found = standing({"retrieval": {"OfficeHelpRetrieval": -0.03}})
    tree = found.as_json()
    assert set(tree) == {*SIDES, ROUTED}
    for who in SIDES:
        for task in TYPES:
            assert tree[who][task] == found.records[who][task]["main_score"]
    assert tree[ROUTED]["far"] == pytest.approx(tree[START]["far"] - 0.03)
    near = [tree[ROUTED][task] for task in ("WordNetSTS", "WikipediaRetrieval")]
    assert tree[ROUTED]["near"] == pytest.approx(np.mean(near))


# ---------------------------------------------------------------------------------------- the card


def test_the_hub_is_told_the_near_and_far_means_before_the_score_of_each_task(tmp_path):
    run = Run(load_recipe(DEMO, [f"output={tmp_path}"]))
    licenses = {"base": {}, "teacher": {}, "data": {}}
    write_json(run.folder / "model" / "st_jv5.json", {"licenses": licenses})
    found = standing({"retrieval": {"OfficeHelpRetrieval": -0.03}})
    metadata = card_metadata(run, found.sides[ROUTED], found.groups)
    told = ModelCard(f"---\n{metadata.to_yaml()}\n---\n").data.eval_results
    near, far, *tasks = told
    assert near.dataset_name == "near, text like the training text: mean of 2"
    assert far.dataset_name == "far, text of other kinds: mean of 1"
    scores = found.as_json()[ROUTED]
    assert (near.metric_value, far.metric_value) == (
        pytest.approx(100 * scores["near"], abs=0.01),
        pytest.approx(100 * scores["far"], abs=0.01),
    )
    assert {one.dataset_name: one.metric_value for one in tasks} == {
        task: pytest.approx(100 * scores[task], abs=0.01) for task in TYPES
    }


def test_the_cards_limits_begin_with_what_was_measured_as_worse_or_not_at_all():
    run = Run(load_recipe(DEMO))
    hurt = limits_of(run, standing({"retrieval": {"OfficeHelpRetrieval": -0.03}}))
    first, families, own = hurt.split("\n\n")
    assert "it is WORSE than the model that training began with" in first
    assert families == "Worse than all-MiniLM-L6-v2: retrieval far."
    assert own == run.recipe.limits.strip()
    unknown = limits_of(run, standing({}, "OfficeHelpRetrieval"))
    assert unknown.startswith("No far task was measured")
    assert limits_of(run, None) == own


# ------------------------------------------------------------------------------------ who is asked


def test_the_start_is_measured_with_its_own_pooling_prompts_and_length(tiny, tmp_path, backbones):
    run = Run(load_recipe(tiny(tmp_path)))
    found, own = start_model(run), SentenceTransformer(MINILM)
    assert found is not None
    assert [type(one) for one in found] == [type(one) for one in own]
    assert found.max_seq_length == own.max_seq_length > run.recipe.student.max_tokens
    assert found.prompts == own.prompts
    assert MTEBEncoder(found).settings() == MTEBEncoder(own).settings()
    np.testing.assert_array_equal(found.encode(["a text"]), own.encode(["a text"]))
    plain = load_recipe(tiny(tmp_path), [f"student.base={backbones['bert']}"])
    assert start_model(Run(plain)) is None


def test_an_evaluation_without_far_tasks_is_warned_of(tiny, tmp_path, caplog):
    path = tiny(tmp_path)
    assert "no far task among evaluation.tasks" in without_far(Run(load_recipe(path)))
    far = "evaluation.tasks=[WordNetSTS, OfficeHelpRetrieval]"
    assert without_far(Run(load_recipe(path, [far]))) == ""
    named = "data_sets.wordnet-lemmas.text_kind=office_help"
    told = without_far(Run(load_recipe(path, [far, named])))
    assert "(debian, office_help, wikipedia, wordnet)" in told
    with pytest.raises(SystemExit, match="run the stage 'stage1' first"):
        main([path, "--only", "model"])
    assert "no far task" not in caplog.text
    with pytest.raises(SystemExit, match="run the stage 'model' first"):
        main([path, "--only", "evaluation"])
    assert "no far task among evaluation.tasks: all are on text like the training text" in (
        caplog.text
    )


def test_an_unmeasured_teacher_has_no_column():
    found = standing({}, TEACHER)
    means, families, _ = found.summary()
    assert not any("teacher" in name for name in (*means.header, *families.header))
    assert not any("teacher" in name for table in found.every_task() for name in table.header)
