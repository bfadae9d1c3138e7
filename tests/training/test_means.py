"""Means over tasks, with intervals of what the samples leave open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.means import adapters_table, kept_table, means, means_table
from training.report import best_adapters, own_adapter


def row(task: str, values: Any, kind: str = "Retrieval", **at: Any) -> dict[str, Any]:
    where = {"adapter": "retrieval", "dim": 384, "precision": "float32", "max_tokens": 64, **at}
    samples = {"statistic": "mean", "values": list(values)}
    return {"task": task, "type": kind, "main_score": float(np.mean(values)), "samples": samples,
            **where}  # fmt: skip


def draws(seed: int, shift: float = 0.0) -> Any:
    return 0.5 + shift + 0.1 * np.random.default_rng(seed).standard_normal(300)


def test_a_gap_that_every_sample_has_leaves_nothing_open():
    sides = [[row(t, draws(i, gap)) for i, t in enumerate("ab")] for gap in (0.05, 0.0)]
    found, drawn = means(sides, 200)
    assert found[0] - found[1] == pytest.approx(5.0)
    np.testing.assert_allclose(drawn[0] - drawn[1], 5.0, atol=1e-9)
    assert drawn[0].std() == pytest.approx(100 * 0.1 / np.sqrt(300 * 2), rel=0.2)


def test_the_table_of_means_says_gaps_and_shares():
    sides = {
        name: {t: row(t, draws(i, gap)) for i, t in enumerate("ab")}
        for name, gap in (("routed", 0.05), ("before", 0.0), ("teacher", 0.1))
    }
    first, second, third = means_table(sides, ["a", "b"], 200, "before", "teacher").rows
    assert first[2] == "+5.0 [+5.0, +5.0]"
    assert second[2] == ""
    assert third[3] == ""
    share = 100 * np.mean([s["main_score"] for s in sides["routed"].values()])
    share /= np.mean([s["main_score"] for s in sides["teacher"].values()])
    assert str(first[3]).startswith(f"{share:.1f} [")


def test_an_adapter_is_held_against_the_base_on_its_own_tasks():
    records = {
        who: {"a": row("a", draws(0, gap)), "b": row("b", draws(1), "Clustering")}
        for who, gap in (("base", 0.0), ("retrieval", -0.02), ("clustering", 0.0))
    }
    worse, same = adapters_table(records, ["retrieval", "clustering", "classification"], 200).rows
    assert worse[:2] == ["retrieval", 1]
    assert worse[4:] == ["-2.0 [-2.0, -2.0]", "worse"]
    assert same[4:] == ["+0.0 [+0.0, +0.0]", "within noise"]


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
