"""The script chooses what ``choose_task`` would, and judges it by the test scores."""

from __future__ import annotations

import random

import pytest

import st_jv5
from eval.studies import choosing
from st_jv5.choosing import choice_of
from st_jv5.evaluation.local_tasks import local_tasks


@pytest.mark.parametrize(
    "name",
    ["WordNetRetrieval", "OfficeBitextGerman", "GlossExamplePairs", "WordNetSTS",
     "TopicClassification", "CategoryClustering"],
)  # fmt: skip
def test_the_script_chooses_as_choose_task_does(model, small_tasks, name):
    task = local_tasks("validation")[f"{name}Validation"]()
    task.load_data()
    kind, examples = choosing.examples_of(task, 20, random.Random(0))
    assert len(examples) == 20
    examples = list(dict.fromkeys(examples))
    sides = {
        name: {side: choosing.Vectors(model, name, side) for side in ("query", "document")}
        for name in ("base", "retrieval", "clustering")
    }
    found = choosing.choose(sides, kind, examples)
    expected = st_jv5.choose_task(model, candidates=["retrieval", "clustering"], **{kind: examples})
    assert found.task == expected.task
    assert found.scores == pytest.approx(expected.scores, abs=0.5)  # near ties


def test_a_choice_is_judged_by_the_test_scores():
    values = [0.0] * 50 + [1.0] * 50
    rows = {
        "base": values,
        "retrieval": [0.0] * 80 + [1.0] * 20,
        "worse": [0.0] * 70 + [1.0] * 30,
        "near": [0.0, 1.0] + [0.0] * 49 + [1.0] * 49,
    }
    record = {
        name: {
            "type": "Retrieval",
            "main_score": sum(own) / 100,
            "samples": {"statistic": "mean", "values": own, "gold": None},
        }
        for name, own in rows.items()
    }
    scores = {"base": 0, "retrieval": 1, "worse": 2, "near": 3}
    drawn = {name: (lambda draws, of=of: 0.0 * draws[:, 0] + of) for name, of in scores.items()}
    near = choice_of(drawn, "pairs", 9)
    drawn.pop("near")
    line = choosing.judged("T", record, [near, near, near, choice_of(drawn, "pairs", 9)])
    assert line[:4] == ["T", "Retrieval", "base 50.0", "near"]
    assert line[4:7] == [75.0, 100.0, 0.0]  # right: near, base, not the routed adapter
    assert line[7:] == ["5.00", 100.0, 25.0]
