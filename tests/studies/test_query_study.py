"""The study of look-up queries, on a tiny model and few rows."""

from __future__ import annotations

import numpy as np
import pytest

from eval.studies import query_table
from eval.studies.query_table import FAR, NEAR, main, row_of, training_queries
from st_jv5.evaluation import corpora
from st_jv5.files import read_json
from tests.conftest import adapted


def test_a_tasks_score_is_its_mean_ndcg():
    """The first query finds its document first, the second finds it second."""
    data = {
        "corpus": {"id": ["a", "b", "c"]},
        "queries": {"id": ["p", "q"]},
        "relevant_docs": {"p": {"a": 1}, "q": {"c": 1}},
    }
    documents = np.eye(3, dtype=np.float32)
    queries = np.array([[1.0, 0.2, 0.1], [0.1, 0.9, 0.4]], dtype=np.float32)
    row = row_of(queries, documents, data)
    np.testing.assert_allclose(row["samples"]["values"], [1, 1 / np.log2(3)])
    assert row["main_score"] == np.mean(row["samples"]["values"])


def test_a_table_learns_from_queries_of_the_train_split_alone():
    asked = {row["description"] for row in corpora.rows("wikipedia", "test")}
    shared = {row["description"] for row in corpora.rows("wikipedia", "train")} & asked
    learned = set(training_queries())
    assert len(learned) > 100_000
    assert (asked & learned) <= shared | {
        row["title"] for row in corpora.rows("wikipedia", "train")
    }


@pytest.mark.parametrize("encoder", [False, True])
def test_it_ends_with_a_model_scores_and_speeds(
    encoder, backbones, small_tasks, monkeypatch, tmp_path, capsys
):
    adapted(backbones["eurobert"]).save_pretrained(str(tmp_path / "model"))
    monkeypatch.setattr(query_table, "TIMED", 100)
    few = training_queries()[:120]
    monkeypatch.setattr(query_table, "training_queries", lambda: few)
    folder, output = str(tmp_path / "model"), tmp_path / "out"
    main([folder, "--output", str(output), *(["--encoder", folder] if encoder else [])])
    kept = read_json(output / "results.json")
    assert kept["queries"] == 120
    for rows in kept["results"].values():
        assert list(rows) == [*NEAR, *FAR]
    assert min(kept["per_second"].values()) > 0
    assert "| near: mean of 4 |" in capsys.readouterr().out
    assert (output / "model" / "router_config.json").is_file()
