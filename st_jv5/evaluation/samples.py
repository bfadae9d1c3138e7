"""What each query or sample contributed to a task's score, and comparisons built on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mteb.abstasks import AbsTask
from mteb.results import TaskResult
from scipy.stats import rankdata

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Samples:
    """A score as a statistic over samples, so that it can be resampled.

    ``mean``: the mean of ``values`` (nDCG@10 per query, accuracy per text over the experiments,
    v-measure per clustering). ``spearman`` and ``average_precision``: of ``values`` (cosines)
    against ``gold``.
    """

    statistic: Literal["mean", "spearman", "average_precision"]
    values: list[float]
    gold: list[float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The samples as ``results.json`` keeps them."""
        return asdict(self)

    def scores(self, draws: Array) -> Array:
        """The statistic on each row of sample indices ``(resamples, n)``."""
        values = np.asarray(self.values)[draws]
        if self.statistic == "mean":
            return values.mean(axis=1)
        gold = np.asarray(self.gold)[draws]
        if self.statistic == "spearman":
            a, b = rankdata(values, axis=1), rankdata(gold, axis=1)
            a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
            norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
            return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)  # a constant one: 0
        order = np.argsort(-values, axis=1, kind="stable")
        hits = np.take_along_axis(gold, order, axis=1)
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        return (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)


def samples_of(task: AbsTask, result: TaskResult, predictions: Path) -> Samples | None:
    """What a score is made of, from mteb's result, its file of predictions and the loaded task.

    None for a task of several subsets or splits, for other types, and wherever the samples do not
    give the main score again.
    """
    if [len(rows) for rows in result.scores.values()] != [1]:
        return None
    ((split, (scores,)),) = result.scores.items()
    try:
        if task.metadata.type == "Clustering":
            samples: Samples | None = Samples("mean", list(chain(*scores["v_measures"].values())))
        else:
            said = json.loads(predictions.read_text(encoding="utf-8"))[scores["hf_subset"]][split]
            data = task.dataset.get(scores["hf_subset"], task.dataset)[split]
            samples = _of_type(task.metadata.type, data, said)
        if samples is None:
            return None
        again = samples.scores(np.arange(len(samples.values))[None])[0]
    except (AttributeError, LookupError, TypeError, ValueError, OSError):  # another layout
        return None
    return samples if abs(again - result.get_score()) < 1e-4 else None


def _of_type(kind: str, data: Any, said: Any) -> Samples | None:
    if kind in ("Retrieval", "Reranking"):
        values = [
            ndcg_at_10(said.get(query, {}), documents)
            for query, documents in data["relevant_docs"].items()
        ]
        return Samples("mean", values)
    if kind == "BitextMining":  # the main score is accuracy
        nearest = said["sentence1-sentence2"]
        return Samples(
            "mean", [float(row["corpus_id"] == index) for index, row in enumerate(nearest)]
        )
    if kind == "Classification":
        gold = np.asarray(data["label"])
        return Samples("mean", (np.asarray(said) == gold).mean(axis=0).tolist())
    if kind == "PairClassification":
        return Samples("average_precision", list(said["cosine_scores"]), list(data["labels"]))
    if kind == "STS":
        return Samples("spearman", list(said["cosine_scores"]), list(data["score"]))
    return None


def ndcg_at_10(scores: dict[str, float], relevant: dict[str, int]) -> float:
    """nDCG@10 of one query; of equal scores the last id comes first, as trec has it."""
    top = sorted(scores, key=lambda document: (scores[document], document), reverse=True)[:10]
    found = [relevant.get(document, 0) for document in top]
    ideal = sorted(relevant.values(), reverse=True)[:10]
    gain, best = (
        sum(value / np.log2(rank + 2) for rank, value in enumerate(gains))
        for gains in (found, ideal)
    )
    return float(gain / best) if best else 0.0


def resampled(sides: Sequence[Samples], resamples: int = 1000, seed: int = 0) -> Array:
    """Scores ``(len(sides), resamples)`` on samples drawn with replacement, the same for all sides.

    Raises:
        ValueError: The sides are not scores of the same samples.
    """
    first = sides[0]
    for samples in sides:
        alike = (samples.statistic, samples.gold) == (first.statistic, first.gold)
        if not alike or len(samples.values) != len(first.values):
            raise ValueError("the two scores are not of the same samples")
    count = len(first.values)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    parts = np.array_split(draws, 20)
    return np.stack([np.concatenate([side.scores(part) for part in parts]) for side in sides])


def interval(scores: Array) -> tuple[float, float]:
    """95% of resampled scores, or of their differences or ratios."""
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    one: Samples | Sequence[Samples],
    other: Samples | Sequence[Samples],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95% interval of ``one``'s score minus ``other``'s over the same resampled samples.

    Several samples on a side are of several seeds: their scores are averaged in each resample.
    """
    sides = [[side] if isinstance(side, Samples) else list(side) for side in (one, other)]
    scores = resampled([*sides[0], *sides[1]], resamples, seed)
    count = len(sides[0])
    return interval(scores[:count].mean(axis=0) - scores[count:].mean(axis=0))


def gap_of_rows(
    one: Mapping[str, Any], other: Mapping[str, Any], resamples: int = 1000
) -> tuple[float, float, float]:
    """How far the first of two rows of a record is above the other, and the 95% interval of that.

    Returns:
        Points: the difference, the interval's low end and its high end. The ends are NaN where one
        of the two has no samples, or they are not scores of the same samples.
    """
    gap = 100 * (one["main_score"] - other["main_score"])
    mine, others = one.get("samples"), other.get("samples")
    if not mine or not others:
        return gap, np.nan, np.nan
    try:
        low, high = paired_bootstrap(Samples(**mine), Samples(**others), resamples)
    except ValueError:  # other samples
        return gap, np.nan, np.nan
    return gap, 100 * low, 100 * high
