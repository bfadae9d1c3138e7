"""Near text and far text, in tables and in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from st_jv5.cli import compare, main
from st_jv5.evaluation.local_tasks import labels_asked, local_tasks, text_kinds
from st_jv5.evaluation.near_far import (
    FAR,
    NEAR,
    Scores,
    by_family,
    groups_table,
    in_words,
    labels_are_new,
    near_and_far,
    near_far_parts,
)
from st_jv5.evaluation.page import Table
from st_jv5.files import read_json, write_json
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe


def row(task: str, values: Any, **settings: Any) -> dict[str, Any]:
    samples = {"statistic": "mean", "values": list(values)}
    return {"task": task, "type": "Retrieval", "adapter": None, "metric": "ndcg_at_10", "dim": 8,
            "precision": "float32", "max_tokens": 64, "main_score": float(np.mean(values)),
            "samples": samples, **settings}  # fmt: skip


def draws(seed: int, shift: float = 0.0) -> Any:
    return 0.5 + shift + 0.1 * np.random.default_rng(seed).standard_normal(300)


def sides(near: Any, far: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """A model and the start on one near and one far task, with gaps by sample."""
    return {
        "start": {"a": row("a", draws(0)), "b": row("b", draws(1))},
        "model": {"a": row("a", draws(0) + near), "b": row("b", draws(1) + far)},
    }


def said(near: Any, far: Any) -> list[Any]:
    scores = Scores(sides(near, far), ["a", "b"], 200)
    groups = {NEAR: ["a"], FAR: ["b"]}
    return in_words(scores, {"model": "this model"}, groups, "start", "MiniLM")


def test_every_local_task_has_a_kind_of_text_in_both_splits():
    names = {*local_tasks("test"), *local_tasks("validation")}
    assert names <= set(text_kinds())
    assert {"wikipedia", "wordnet", "office_help"} <= set(text_kinds().values())


def test_near_is_the_kind_of_text_that_was_trained_on():
    tasks = ["WordNetSTSValidation", "TopicClustering", "OfficeBitextGerman", "NFCorpus"]
    groups = near_and_far(tasks, {"wordnet", "office_help"})
    assert groups[NEAR] == ["WordNetSTSValidation", "OfficeBitextGerman"]
    assert groups[FAR] == ["TopicClustering", "NFCorpus"]
    assert near_and_far(["NFCorpus"], ["NFCorpus"])[NEAR] == ["NFCorpus"]  # a task by its name


def test_a_far_mean_below_the_start_is_said_in_words():
    near, far = said(near=0.03, far=-0.014)
    assert "3.0 above MiniLM [+3.0, +3.0]: on text like the training text" in near.text
    assert "it is better than the model that training began with" in near.text
    assert not near.is_worse
    assert far.text.startswith("Far, this model: ")
    assert "1.4 below MiniLM [-1.4, -1.4]: on text of other kinds" in far.text
    assert "it is WORSE than the model that training began with" in far.text
    assert far.is_worse


def test_a_gap_that_may_be_noise_is_called_so():
    gap = 0.1 * np.random.default_rng(9).standard_normal(300)
    _, far = said(near=0.0, far=gap - gap.mean())
    assert "within noise of MiniLM (" in far.text
    assert "neither better nor worse" in far.text
    assert not far.is_worse


def test_what_was_not_measured_is_said():
    scores = Scores(sides(0.0, 0.0), ["a"], 50)
    near, far = in_words(scores, {"model": "this"}, {NEAR: ["a"], FAR: []}, "start", "MiniLM")
    assert near.text.startswith("Near, this: ")
    assert far.text == (
        "No far task was measured: whether training hurt on other text is not known."
    )


def test_intervals_of_differences_are_paired():
    """Each side alone varies by 1.1 points; their difference by nothing."""
    scores = Scores(sides(0.01, 0.01), ["a", "b"], 200)
    model, start = (scores.mean(who, ["a"]) for who in ("model", "start"))
    assert np.ptp(model.drawn) > 2
    assert (model - start).shown("+") == "+1.0 [+1.0, +1.0]"


def test_scores_of_other_samples_are_refused_by_the_name_of_the_task():
    both = sides(0.0, 0.0)
    both["model"]["b"] = row("b", draws(1)[:-1])
    with pytest.raises(ValueError, match="b: the two scores are not of the same samples"):
        Scores(both, ["a", "b"])


def test_a_score_without_samples_has_no_interval_and_no_verdict():
    both = sides(0.02, 0.02)
    both["model"]["b"]["samples"] = None
    scores = Scores(both, ["a", "b"], 50)
    gap = scores.mean("model", ["a", "b"]) - scores.mean("start", ["a", "b"])
    assert (gap.shown("+"), gap.verdict) == ("+2.0", "no samples")


def test_a_family_is_told_by_near_and_far():
    groups = {NEAR: ["a", "b"], FAR: ["c"]}
    types = {"a": "Retrieval", "b": "STS", "c": "Reranking"}
    families = by_family(groups, types)
    assert families["retrieval", NEAR] == ["a"]
    assert families["retrieval", FAR] == ["c"]
    assert families["text-matching", FAR] == []
    found = {who: {t: row(t, draws(i, gap)) for i, t in enumerate("abc")}
             for who, gap in (("start", 0.0), ("model", -0.01))}  # fmt: skip
    labels = {"start": "MiniLM", "model": "routed"}
    table = groups_table(
        Scores(found, list("abc"), 50), ["family", "text"], families, labels, ["model"], "start"
    )
    assert table.header[:5] == ["family", "text", "tasks", "MiniLM", "routed"]
    assert [one[:3] for one in table.rows] == [
        ["retrieval", "near", 1],
        ["retrieval", "far", 1],
        ["text-matching", "near", 1],
    ]
    assert {one[-1] for one in table.rows} == {"worse"}


# ------------------------------------------------------------------------------- records of eval


@pytest.fixture
def records(tmp_path):
    """Folders of a model and of the one that it began with."""
    for who, near, far in (("base", 0.0, 0.0), ("model", 0.02, -0.02)):
        rows = [row("WordNetSTS", draws(0, near)), row("TopicClustering", draws(1, far))]
        tree = {"model": who, "weights": "w", "results": [
            {**one, "seconds": {"encode": 0, "score": 0}, "versions": {}, "scores": {},
             "prompts": {"query": "", "document": ""}, "dtype": "float32", "bytes": 32}
            for one in rows
        ]}  # fmt: skip
        write_json(tmp_path / who / "results.json", tree)
    return tmp_path


def test_without_what_was_trained_on_means_are_by_kind_of_text(records):
    rows = sides(0.0, 0.0)["model"]
    text, table = near_far_parts({"m": rows}, ())
    assert "Near and far are not separated" in text
    assert isinstance(table, Table)
    assert [one[:2] for one in table.rows] == [["not known", 2]]
    main(["report", str(records / "model")])
    page = (records / "model" / "report.md").read_text()
    assert "Near and far are not separated" in page
    assert f"| wordnet | 1 | {100 * draws(0, 0.02).mean():.1f} |" in page


def test_a_page_tells_near_from_far_beside_the_start(records):
    main(
        [
            "report",
            str(records / "model"),
            "--trained-on",
            "wordnet",
            "--start",
            str(records / "base"),
        ]
    )
    page = (records / "model" / "report.md").read_text()
    assert "2.0 below base [-2.0, -2.0]: on text of other kinds it is WORSE" in page
    assert "| near: mean of 1 task | above the start | far: mean of 1 task |" in page


def test_what_a_recipe_trained_on_is_read_beside_its_model(records, tmp_path):
    tree = read_json(records / "model" / "results.json")
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "run.json", {"text_kinds": ["wordnet"]})
    write_json(records / "model" / "results.json", tree | {"model": str(tmp_path / "out" / "m")})
    main(["report", str(records / "model")])
    assert "Near: wordnet. Far: wikipedia." in (records / "model" / "report.md").read_text()


def test_runs_side_by_side_are_held_against_the_start(records, capsys):
    compare([str(records / "model"), "--start", str(records / "base"), "--trained-on", "wordnet"])
    printed = capsys.readouterr().out
    assert "| model | 5" in printed
    assert "+2.0 [+2.0, +2.0]" in printed
    assert "Far, model: " in printed
    assert "it is WORSE than the model that training began with" in printed


def test_labels_are_new_where_none_of_them_was_trained_on():
    told = {"wikipedia": {"Arts", "History"}, "wordnet": {"noun.act"}}
    assert labels_are_new("TopicClustering", told) is False
    assert labels_are_new("HeldOutTopicClassificationValidation", told) is True
    assert labels_are_new("DebianSectionClustering", told) is True  # another kind of text
    assert labels_are_new("WordNetSTS", told) is None
    assert labels_are_new("HeldOutTopicClustering", {"wikipedia": {"Geography"}}) is False


def test_the_laptop_trains_on_no_label_that_is_held_out():
    run = Run(load_recipe("training/recipes/laptop.yaml"))
    assert len(run.labels["wikipedia"]) == 6
    assert len(run.labels["wordnet"]) == 20
    held = [task for task in labels_asked() if task.startswith("HeldOut")]
    assert len(held) == 8
    assert all(labels_are_new(task, run.labels) for task in held)
    assert not labels_are_new("CategoryClustering", run.labels)
