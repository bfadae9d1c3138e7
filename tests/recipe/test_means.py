"""Means over tasks, with intervals of what the samples leave open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from st_jv5.evaluation.means import NEW, NO_LABELS, SEEN, adapters_table, advice, kept_table
from st_jv5.evaluation.near_far import FAR, NEAR, Scores, means_table
from st_jv5.recipe.results.report import best_adapters
from st_jv5.recipe.results.standing import own_adapter


def row(task: str, values: Any, kind: str = "Retrieval", **at: Any) -> dict[str, Any]:
    where = {"adapter": "retrieval", "dim": 384, "precision": "float32", "max_tokens": 64, **at}
    samples = {"statistic": "mean", "values": list(values)}
    return {"task": task, "type": kind, "main_score": float(np.mean(values)), "samples": samples,
            **where}  # fmt: skip


def draws(seed: int, shift: float = 0.0) -> Any:
    return 0.5 + shift + 0.1 * np.random.default_rng(seed).standard_normal(300)


def test_a_gap_that_every_sample_has_leaves_nothing_open():
    sides = {
        who: {t: row(t, draws(i, gap)) for i, t in enumerate("ab")}
        for who, gap in (("one", 0.05), ("other", 0.0))
    }
    scores = Scores(sides, ["a", "b"], 200)
    one, other = (scores.mean(who, ["a", "b"]) for who in sides)
    assert (one - other).value == pytest.approx(5.0)
    np.testing.assert_allclose((one - other).drawn, 5.0, atol=1e-9)
    assert one.drawn.std() == pytest.approx(100 * 0.1 / np.sqrt(300 * 2), rel=0.2)


def test_the_table_of_means_says_gaps_and_shares_of_near_and_far():
    sides = {
        name: {t: row(t, draws(i, gap if t == "a" else -gap)) for i, t in enumerate("ab")}
        for name, gap in (("routed", 0.05), ("before", 0.0), ("teacher", 0.1))
    }
    groups = {NEAR: ["a"], FAR: ["b"]}
    labels = {who: who for who in sides}
    scores = Scores(sides, ["a", "b"], 200)
    table = means_table(scores, labels, groups, "before", "teacher")
    assert table.header[1:4] == ["near: mean of 1 task", "above the start", "% of the teacher"]
    first, second, third = table.rows
    assert (first[2], first[5]) == ("+5.0 [+5.0, +5.0]", "-5.0 [-5.0, -5.0]")
    assert (second[2], second[5]) == ("", "")
    assert (third[3], third[6]) == ("", "")
    share = 100 * sides["routed"]["a"]["main_score"] / sides["teacher"]["a"]["main_score"]
    assert str(first[3]).startswith(f"{share:.1f} [")
    assert len(means_table(scores, labels, {NEAR: ["a"], FAR: []}).header) == 2


def test_an_adapter_is_held_against_the_base_on_its_own_tasks_near_and_far():
    records = {
        who: {"a": row("a", draws(0, gap)), "b": row("b", draws(1), "Clustering"),
              "c": row("c", draws(2, -gap))}
        for who, gap in (("base", 0.0), ("retrieval", -0.02), ("clustering", 0.0))
    }  # fmt: skip
    scores = Scores(records, ["a", "b", "c"], 200)
    types = {task: found["type"] for task, found in records["base"].items()}
    adapters = ["retrieval", "clustering", "classification"]
    labels = {"a": NO_LABELS, "b": SEEN, "c": NO_LABELS}
    table = adapters_table(scores, adapters, {NEAR: ["a", "b"], FAR: ["c"]}, types, labels)
    worse, better, same = table.rows
    assert worse[:4] == ["retrieval", "near", "", 1]
    assert worse[6:] == ["-2.0 [-2.0, -2.0]", "worse"]
    assert better[:4] == ["retrieval", "far", "", 1]
    assert better[6:] == ["+2.0 [+2.0, +2.0]", "better"]
    assert same[:4] == ["clustering", "near", "seen", 1]
    assert same[6:] == ["+0.0 [+0.0, +0.0]", "within noise"]


def test_the_advice_rests_on_labels_that_an_adapter_was_not_trained_on():
    gaps = {
        "clustering": {"near seen": 0.2, "near new": 0.04, "far new": 0.01},
        "classification": {"near seen": 0.2, "near new": 0.0, "far new": 0.0},
        "retrieval": {"near": 0.03, "far": -0.01},
    }
    kinds = {"clustering": "Clustering", "classification": "Classification"}
    types = {f"{a} {t}": kinds.get(a, "Retrieval") for a, own in gaps.items() for t in own}
    labels = {task: {"seen": SEEN, "new": NEW}.get(task.split()[-1], NO_LABELS) for task in types}
    records = {
        who: {
            f"{a} {t}": row("x", draws(i, gap if who == a else 0.0))
            for a, own in gaps.items()
            for i, (t, gap) in enumerate(own.items())
        }
        for who in ("base", *gaps)
    }
    scores = Scores(records, [*types], 200)
    groups = {side: [t for t in types if t.split()[1] == side] for side in (NEAR, FAR)}
    told = {line[0]: line[1:] for line in advice(scores, [*gaps], groups, types, labels).rows}
    assert told == {
        "clustering": [
            *("+4.0 [+4.0, +4.0]", "+1.0 [+1.0, +1.0]", "take it for its tasks, on any text"),
        ],
        "classification": [
            *("+0.0 [+0.0, +0.0]", "+0.0 [+0.0, +0.0]", "it brings nothing: take `base`"),
        ],
        "retrieval": [
            *("+3.0 [+3.0, +3.0]", "-1.0 [-1.0, -1.0]"),
            "worse than the base on far text: take `base` there",
        ],
    }
    (near,) = advice(scores, ["clustering"], {NEAR: groups[NEAR]}, types, labels).rows
    assert near[2] == ""
    assert near[3].endswith("on text like the training text; elsewhere it is not known")
    assert advice(scores, [], groups, types, labels) is None
    table = adapters_table(scores, ["clustering"], groups, types, labels)
    assert [one[1:4] for one in table.rows] == [
        ["near", "new", 1], ["far", "new", 1], ["near", "seen", 1], ["near and far", "new", 2],
    ]  # fmt: skip
    assert table.rows[-1][6] == "+2.5 [+2.5, +2.5]"


def test_what_is_kept_is_of_the_tasks_that_have_it():
    found = [row("a", draws(0)), row("b", draws(1), "Clustering", adapter="clustering"),
             row("a", 0.9 * draws(0), precision="binary"),
             row("a", 0.8 * draws(0), dim=128),
             row("b", 0.8 * draws(1), "Clustering", adapter="clustering", dim=128),
             row("a", 0.1 * draws(0), dim=128, precision="binary")]  # fmt: skip
    binary, cut = kept_table(found, 200).rows
    assert (binary[0], binary[1], binary[4]) == ("384 dims, binary", 1, "90.0 [90.0, 90.0]")
    assert (cut[0], cut[1], cut[4]) == ("128 dims, float32", 2, "80.0 [80.0, 80.0]")
    assert kept_table(found[:2], 200) is None


def test_a_task_whose_adapter_was_not_trained_goes_to_the_base():
    records = {
        who: {"a": row("a", draws(0)), "b": row("b", draws(1), "Clustering")}
        for who in ("base", "retrieval")
    }
    assert [own_adapter(records, task) for task in "ab"] == ["retrieval", "base"]
    assert [one[0] for one in best_adapters(records, ["retrieval"], ["a", "b"], 100).rows] == ["a"]
