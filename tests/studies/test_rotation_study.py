"""The studies of the rotation and of the heads tell what their records hold."""

from __future__ import annotations

import numpy as np
import pytest

from eval.studies import heads, rotation
from st_jv5.evaluation.corpora import rows


def row(task: str, kind: str, adapter: str, dim: int, score: float) -> dict:
    return {
        "task": task, "type": kind, "adapter": adapter, "dim": dim, "precision": "float32",
        "main_score": score, "samples": None, "max_tokens": 64,
    }  # fmt: skip


def test_pairs_are_of_the_train_split_alone():
    pairs = rotation.training_pairs()
    train = {row["gloss"] for row in rows("wordnet", "train")}
    test = {row["gloss"] for row in rows("wordnet", "test")} - train
    assert len({text for _, text in pairs} & train) > 1000
    assert not {text for _, text in pairs} & test
    assert all(query and len(text) <= rotation.CHARACTERS for query, text in pairs)


def test_shares_are_of_each_ways_own_full_width_each_task_alike():
    def found(at_full: float, at_16: float) -> list[dict]:
        return [
            row("WordNetSTS", "STS", "text-matching", 48, at_full),
            row("WordNetSTS", "STS", "text-matching", 16, at_16),
            row("DocstringRetrieval", "Retrieval", "retrieval", 48, 0.5),
            row("DocstringRetrieval", "Retrieval", "retrieval", 16, 0.25),
            row("DocstringRetrieval", "Retrieval", "clustering", 16, 0.9),  # not the task's own
        ]

    more = row("FactbookSTS", "STS", "text-matching", 48, 0.1)  # not of all records
    records = {
        "as it is": found(0.8, 0.4),
        "rotated": found(0.8, 0.6),
        "beside": [*found(0.4, 0.3), more],
    }
    (section,) = rotation.page(records, ["wordnet"]).sections
    _, table, plot = section[1]
    assert [line[:3] for line in table.rows] == [
        ["as it is", 48, 192],
        ["as it is", 16, 64],
        ["rotated", 48, 192],
        ["rotated", 16, 64],
        ["beside", 48, 192],
        ["beside", 16, 64],
    ]
    assert [line[3] for line in table.rows] == ["100.0", "50.0", "100.0", "62.5", "100.0", "62.5"]
    assert table.rows[3][4:] == ["75.0", "50.0"]
    assert plot.name == "rotation-float32"


def test_a_heads_gain_is_its_part_of_the_adapters():
    records = {
        way: [row("TopicClassification", "Classification", adapter, 48, score)]
        for way, adapter, score in (
            ("base", "base", 0.5),
            ("adapters", "classification", 0.9),
            ("heads", "classification", 0.7),
        )
    }
    (line,) = heads.table(records).rows
    assert line[:2] == ["classification", 1]
    assert line[6] == pytest.approx(50.0)


def test_indexes_overlap_by_the_hits_that_they_share():
    documents = np.eye(40)
    queries = documents[:5] + np.arange(40, 0, -1) / 1000
    assert heads.overlap(documents, documents, queries, queries) == 100.0
    assert heads.overlap(documents, documents[::-1], queries, queries) < 20.0


def test_heads_learn_from_texts_of_the_train_split_alone():
    texts = heads.training_texts()
    assert len(texts) > 100_000
    assert len(set(texts)) == len(texts)
    assert heads.training_texts(50) == texts[:50]
    train = {row["extract"] for row in rows("wikipedia", "train")}
    test = {row["extract"][: heads.CHARACTERS] for row in rows("wikipedia", "test")}
    assert not (test - train) & set(texts)


def test_the_figure_of_heads_has_a_panel_for_near_and_one_for_far():
    records = {
        way: [
            row("WordNetSTS", "STS", adapter, 48, score),
            row("DocstringSTS", "STS", adapter, 48, score),
        ]
        for way, adapter, score in (
            ("base", "base", 0.5),
            ("adapters", "text-matching", 0.9),
            ("heads", "text-matching", 0.7),
        )
    }
    plot = heads.figure(records, {"base": 50.0, "heads": 49.0, "adapters": 12.0}, ["wordnet"])
    for words in (
        "near, mean of 1",
        "far, mean of 1",
        "texts a second, all tasks",
        "four adapters",
    ):
        assert words in plot.svg
