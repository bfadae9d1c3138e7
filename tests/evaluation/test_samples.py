"""What queries and samples contributed to a score, and what of a gap is noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, ndcg_score

from st_jv5.evaluation.samples import Samples, ndcg_at_10, paired_bootstrap


def test_ndcg_is_sklearns():
    draw = np.random.default_rng(0)
    for _ in range(20):
        gains = (draw.random(30) < 0.2).astype(float)
        gains[0] = 1
        values = draw.random(30)
        scores = {str(i): float(v) for i, v in enumerate(values)}
        relevant = {str(i): 1 for i in np.flatnonzero(gains)}
        expected = ndcg_score(gains[None], values[None], k=10)
        assert ndcg_at_10(scores, relevant) == pytest.approx(expected)


def test_ndcg_breaks_ties_and_grades_as_trec_does():
    import pytrec_eval

    draw = np.random.default_rng(0)
    relevant = {f"q{q}": {f"d{i}": int(draw.integers(0, 4)) for i in range(15)} for q in range(20)}
    scores = {q: {f"d{i}": float(np.round(draw.random(), 1)) for i in range(40)} for q in relevant}
    theirs = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(scores)
    for query, found in theirs.items():
        assert ndcg_at_10(scores[query], relevant[query]) == pytest.approx(found["ndcg_cut_10"])


def test_each_statistic_is_the_known_one():
    draw = np.random.default_rng(0)
    values, gold = draw.random(50), np.round(draw.random(50), 1)
    labels = (gold > 0.5).astype(float)
    whole = np.arange(50)[None]
    assert Samples("mean", values.tolist()).scores(whole)[0] == pytest.approx(values.mean())
    spearman = Samples("spearman", values.tolist(), gold.tolist()).scores(whole)[0]
    assert spearman == pytest.approx(spearmanr(values, gold)[0])
    precision = Samples("average_precision", values.tolist(), labels.tolist()).scores(whole)[0]
    assert precision == pytest.approx(average_precision_score(labels, values))


def test_the_paired_bootstrap_tells_a_gap_from_noise():
    draw = np.random.default_rng(1)
    base = draw.random(400)
    same = Samples("mean", base.tolist())
    better = Samples("mean", (base + 0.05 + 0.1 * draw.standard_normal(400)).tolist())
    low, high = paired_bootstrap(better, same)
    assert 0.03 < low < 0.05 < high < 0.08
    noise = Samples("mean", (base + 0.1 * draw.standard_normal(400)).tolist())
    low, high = paired_bootstrap(noise, same)
    assert low < 0 < high
    with pytest.raises(ValueError, match="not of the same samples"):
        paired_bootstrap(same, Samples("mean", [1.0]))
