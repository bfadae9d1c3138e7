"""mteb tasks over the test split of training/data: no Hub, no label from a teacher.

=====================  ==================  =========================================================
task                   mteb type           built from (test split, English)
=====================  ==================  =========================================================
WikipediaRetrieval     Retrieval           description -> extract; all rows of an equal description
                                           are relevant
WordNetRetrieval       Retrieval           lemmas -> gloss; all rows of an equal lemma string are
TopicClassification    Classification      topic of a wikipedia extract, 11 topics
CategoryClassification Classification      lexicographer file (noun.*, verb.*) of a gloss
TopicClustering        Clustering          the same topics
CategoryClustering     Clustering          the same categories
GlossExamplePairs      PairClassification  gloss and example of one synset, or of two of a category
WordNetSTS             STS                 glosses of two synsets, scored 1 / (1 + path length)
=====================  ==================  =========================================================

The classifiers' few training texts come from the train split; a clustering score is the mean of
twenty clusterings, for one alone varies by several points.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from training.corpora import example_pairs, labelled, rows, similarity_pairs

SEED = 20260215
TRAINING_TEXTS = 24
"""Per label: the classifiers' experiments draw eight each from these."""


def _metadata(name: str, kind: str, main_score: str, description: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        type=kind,
        main_score=main_score,
        category="t2t" if kind in ("Retrieval", "STS", "PairClassification") else "t2c",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        dataset={"path": "local/st_jv5", "revision": "1"},
        reference=None,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
    )


class _Retrieval(AbsTaskRetrieval):
    source: ClassVar[str]
    query: ClassVar[str]
    document: ClassVar[str]
    k_values = (1, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        found = rows(self.source, "test")
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for index, row in enumerate(found):
            if row[self.query]:
                relevant[row[self.query]][f"d{index}"] = 1
        queries = {text: f"q{index}" for index, text in enumerate(relevant)}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(
                        [
                            {"id": f"d{i}", "text": row[self.document], "title": ""}
                            for i, row in enumerate(found)
                        ]
                    ),
                    "queries": Dataset.from_list(
                        [{"id": key, "text": text} for text, key in queries.items()]
                    ),
                    "relevant_docs": {queries[text]: docs for text, docs in relevant.items()},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class WikipediaRetrieval(_Retrieval):
    metadata = _metadata(
        "WikipediaRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find an article by its description.",
    )
    source, query, document = "wikipedia", "description", "extract"


class WordNetRetrieval(_Retrieval):
    metadata = _metadata(
        "WordNetRetrieval", "Retrieval", "ndcg_at_10", "Find the definition of a word."
    )
    source, query, document = "wordnet", "lemmas", "gloss"


def first_of_each(pairs: list[tuple[str, str]], most: int | None) -> list[tuple[str, str]]:
    """The first ``most`` texts of each label."""
    seen: Counter[str] = Counter()
    kept = []
    for text, label in pairs:
        seen[label] += 1
        if most is None or seen[label] <= most:
            kept.append((text, label))
    return kept


class _Classification(AbsTaskClassification):
    labels_of: ClassVar[str]
    samples_per_label = 8
    n_experiments = 5

    def _calculate_scores(self, y_test: Any, y_pred: Any) -> Any:
        # mteb hands sklearn a lazy column, which it would read row by row, many times.
        return super()._calculate_scores(np.asarray(y_test[:]), y_pred)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        names = sorted({label for _, label in labelled(self.labels_of, "test")})
        self.dataset = DatasetDict(
            {
                split: Dataset.from_list(
                    [
                        {"text": text, "label": names.index(label)}
                        for text, label in first_of_each(labelled(self.labels_of, split), most)
                        if label in names
                    ]
                )
                for split, most in (("train", TRAINING_TEXTS), ("test", None))
            }
        )
        self.data_loaded = True


class TopicClassification(_Classification):
    metadata = _metadata(
        "TopicClassification", "Classification", "accuracy", "Name an article's topic."
    )
    labels_of = "topic"


class CategoryClassification(_Classification):
    metadata = _metadata(
        "CategoryClassification",
        "Classification",
        "accuracy",
        "Name a definition's category.",
    )
    labels_of = "category"


class _Clustering(AbsTaskClustering):
    labels_of: ClassVar[str]
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 2048
    n_clusters = 20

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        found = labelled(self.labels_of, "test")
        self.dataset = DatasetDict(
            {
                "test": Dataset.from_dict(
                    {"sentences": [t for t, _ in found], "labels": [c for _, c in found]}
                )
            }
        )
        self.data_loaded = True


class TopicClustering(_Clustering):
    metadata = _metadata("TopicClustering", "Clustering", "v_measure", "Group articles by topic.")
    labels_of = "topic"


class CategoryClustering(_Clustering):
    metadata = _metadata(
        "CategoryClustering", "Clustering", "v_measure", "Group definitions by lexicographer file."
    )
    labels_of = "category"


class GlossExamplePairs(AbsTaskPairClassification):
    metadata = _metadata(
        "GlossExamplePairs",
        "PairClassification",
        "max_ap",
        "Is the word used as defined?",
    )

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pairs = example_pairs(rows("wordnet", "test"), count=3000, seed=SEED)
        self.dataset = DatasetDict({"test": Dataset.from_list(pairs)})
        self.data_loaded = True


class WordNetSTS(AbsTaskSTS):
    metadata = _metadata(
        "WordNetSTS", "STS", "cosine_spearman", "How near are two definitions in WordNet's tree?"
    )
    min_score, max_score = 0, 1

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pairs = similarity_pairs(rows("wordnet", "test"), count=3000, seed=SEED)
        self.dataset = DatasetDict({"test": Dataset.from_list(pairs)})
        self.data_loaded = True


LOCAL_TASKS: tuple[type[AbsTask], ...] = (
    WikipediaRetrieval,
    WordNetRetrieval,
    TopicClassification,
    CategoryClassification,
    TopicClustering,
    CategoryClustering,
    GlossExamplePairs,
    WordNetSTS,
)
