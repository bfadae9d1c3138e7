"""What the local tasks of one family share: rows of a data file, as mteb's tasks take them."""

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

from st_jv5.evaluation.corpora import labelled, rows

SEED = 20260215
TRAINING_TEXTS = 24
"""Per label: the classifiers' experiments draw eight each from these."""


def described(
    name: str, kind: str, main_score: str, description: str, langs: tuple[str, ...] = ("eng-Latn",)
) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        type=kind,
        main_score=main_score,
        category="t2c" if kind in ("Classification", "Clustering") else "t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=list(langs),
        dataset={"path": "local/st_jv5", "revision": "the data's hash"},  # put in when it is scored
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


class Local(AbsTask):
    """Where a task's rows come from."""

    text_kind: ClassVar[str]
    """The data file's stem. To a model trained on that file's train split the task is near."""
    lang: ClassVar[str] = "en"
    part = "test"
    """Split of the data file."""

    def found(self) -> list[dict[str, Any]]:
        """The rows of the part."""
        return rows(self.text_kind, self.part, self.lang)


class LocalRetrieval(Local, AbsTaskRetrieval):
    """Find the document of a query; all rows of an equal query are relevant."""

    query: ClassVar[str]
    document: ClassVar[str]
    k_values = (1, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        found = self.found()
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for index, row in enumerate(found):
            if row[self.query]:
                relevant[row[self.query]][f"d{index}"] = 1
        documents = {f"d{index}": row[self.document] for index, row in enumerate(found)}
        self.dataset = {"default": {"test": retrieval_data(documents, relevant)}}
        self.data_loaded = True


def retrieval_data(
    documents: dict[str, str],
    relevant: dict[str, dict[str, int]],
    top_ranked: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    """A split as mteb's retrieval tasks keep it.

    Args:
        documents: Id -> text.
        relevant: Query's text -> ids of its documents.
        top_ranked: Query's text -> ids to rank; None ranks all.
    """
    queries = {text: f"q{index}" for index, text in enumerate(relevant)}
    ranked = top_ranked and {queries[text]: ids for text, ids in top_ranked.items()}
    return {
        "corpus": Dataset.from_list(
            [{"id": key, "text": text, "title": ""} for key, text in documents.items()]
        ),
        "queries": Dataset.from_list([{"id": key, "text": text} for text, key in queries.items()]),
        "relevant_docs": {queries[text]: found for text, found in relevant.items()},
        "top_ranked": ranked,
    }


def first_of_each(pairs: list[tuple[str, str]], most: int | None) -> list[tuple[str, str]]:
    """The first ``most`` texts of each label."""
    seen: Counter[str] = Counter()
    kept = []
    for text, label in pairs:
        seen[label] += 1
        if most is None or seen[label] <= most:
            kept.append((text, label))
    return kept


class LocalClassification(Local, AbsTaskClassification):
    """Name a text's label, after a few texts of the train split."""

    labels_of: ClassVar[str]
    most_per_label: ClassVar[int | None] = None
    """Most texts of a label under test; None: all."""
    samples_per_label = 8
    n_experiments = 5

    def _calculate_scores(self, y_test: Any, y_pred: Any) -> Any:
        # mteb hands sklearn a lazy column, which it would read row by row, many times.
        return super()._calculate_scores(np.asarray(y_test[:]), y_pred)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        names = sorted({label for _, label in labelled(self.labels_of, self.part)})
        self.dataset = DatasetDict(
            {
                split: Dataset.from_list(
                    [
                        {"text": text, "label": names.index(label)}
                        for text, label in first_of_each(labelled(self.labels_of, part), most)
                        if label in names
                    ]
                )
                for split, part, most in (
                    ("train", "train", TRAINING_TEXTS),
                    ("test", self.part, self.most_per_label),
                )
            }
        )
        self.data_loaded = True


class LocalClustering(Local, AbsTaskClustering):
    """Group texts by label."""

    labels_of: ClassVar[str]
    most_per_label: ClassVar[int | None] = None
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 2048
    n_clusters = 20

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        found = first_of_each(labelled(self.labels_of, self.part), self.most_per_label)
        self.dataset = DatasetDict(
            {
                "test": Dataset.from_dict(
                    {"sentences": [t for t, _ in found], "labels": [c for _, c in found]}
                )
            }
        )
        self.data_loaded = True


class LocalPairs(Local, AbsTaskPairClassification):
    """Do two texts belong together?"""

    def pairs(self) -> list[dict[str, Any]]:
        """sentence1, sentence2 and labels, 1 for together."""
        raise NotImplementedError

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        self.dataset = DatasetDict({"test": Dataset.from_list(self.pairs())})
        self.data_loaded = True


class LocalSTS(Local, AbsTaskSTS):
    """How near are two texts?"""

    min_score, max_score = 0, 1

    def pairs(self) -> list[dict[str, Any]]:
        """sentence1, sentence2 and score."""
        raise NotImplementedError

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        self.dataset = DatasetDict({"test": Dataset.from_list(self.pairs())})
        self.data_loaded = True
