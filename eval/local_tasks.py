"""mteb tasks over the test split of training/data: no Hub, no label from a teacher.

=======================  ==================  =======================================================
task                     mteb type           built from (test split, English unless said)
=======================  ==================  =======================================================
WikipediaRetrieval       Retrieval           description -> extract; all rows of an equal
                                             description are relevant
WikipediaRetrievalFrench Retrieval           the same in French, and ...Spanish in Spanish
WordNetRetrieval         Retrieval           lemmas -> gloss; all rows of an equal lemma string are
OfficeHelpRetrieval      Retrieval           title -> body of a help page
OfficeLongRetrieval      Retrieval           title -> joined pages, 8,000 characters or more; also
                                             scored by how far into them the page stands
WikipediaReranking       Reranking           description -> the 30 extracts that BM25 finds nearest,
                                             and the relevant ones
TopicClassification      Classification      topic of a wikipedia extract, 11 topics
CategoryClassification   Classification      lexicographer file (noun.*, verb.*) of a gloss
TopicClustering          Clustering          the same topics
CategoryClustering       Clustering          the same categories
GlossExamplePairs        PairClassification  gloss and example of one synset, or of two of a
                                             category
OfficeBitextGerman       BitextMining        openings of one help page in English and German; also
                                             ...Russian, ...Japanese
WordNetSTS               STS                 glosses of two synsets, scored 1 / (1 + path length)
=======================  ==================  =======================================================

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
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from eval.samples import ndcg_at_10
from training.corpora import (
    example_pairs,
    joined_pages,
    labelled,
    parallel_openings,
    rows,
    similarity_pairs,
)

SEED = 20260215
TRAINING_TEXTS = 24
"""Per label: the classifiers' experiments draw eight each from these."""


LONG_CHARACTERS = 8_000
"""Least length of a joined document, about 2,000 tokens."""
OFFSETS = (0, 2_000, 6_000)
"""Where the parts of a joined document begin, in characters, whose pages are scored apart."""
CANDIDATES = 30
"""Of BM25, for reranking."""
OPENING = 400
"""Characters of a page in bitext mining."""


def _metadata(
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


class _Local(AbsTask):
    """Where a task's test rows come from."""

    part = "test"
    """Split of training/data."""


class _Retrieval(_Local, AbsTaskRetrieval):
    source: ClassVar[str]
    query: ClassVar[str]
    document: ClassVar[str]
    lang: ClassVar[str] = "en"
    k_values = (1, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        found = rows(self.source, self.part, self.lang)
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


class WikipediaRetrieval(_Retrieval):
    metadata = _metadata(
        "WikipediaRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find an article by its description.",
    )
    source, query, document = "wikipedia", "description", "extract"


class WikipediaRetrievalFrench(_Retrieval):
    metadata = _metadata(
        "WikipediaRetrievalFrench",
        "Retrieval",
        "ndcg_at_10",
        "Find a French article by its description.",
        ("fra-Latn",),
    )
    source, query, document, lang = "wikipedia", "description", "extract", "fr"


class WikipediaRetrievalSpanish(_Retrieval):
    metadata = _metadata(
        "WikipediaRetrievalSpanish",
        "Retrieval",
        "ndcg_at_10",
        "Find a Spanish article by its description.",
        ("spa-Latn",),
    )
    source, query, document, lang = "wikipedia", "description", "extract", "es"


class WordNetRetrieval(_Retrieval):
    metadata = _metadata(
        "WordNetRetrieval", "Retrieval", "ndcg_at_10", "Find the definition of a word."
    )
    source, query, document = "wordnet", "lemmas", "gloss"


class OfficeHelpRetrieval(_Retrieval):
    metadata = _metadata(
        "OfficeHelpRetrieval", "Retrieval", "ndcg_at_10", "Find a help page by its title."
    )
    source, query, document = "office_help", "title", "body"


class OfficeLongRetrieval(_Local, AbsTaskRetrieval):
    metadata = _metadata(
        "OfficeLongRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find the long document that holds the help page of a title.",
    )
    k_values = (1, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pages = rows("office_help", self.part)
        documents = joined_pages(pages, LONG_CHARACTERS, SEED)
        place = {
            page: (f"d{index}", offset)
            for index, document in enumerate(documents)
            for page, offset in document.offsets.items()
        }
        titles = Counter(page["title"] for page in pages)
        chosen = {
            page["title"]: place[page["page"]] for page in pages if titles[page["title"]] == 1
        }
        self.offsets = {title: offset for title, (_, offset) in chosen.items()}
        texts = {f"d{index}": document.text for index, document in enumerate(documents)}
        relevant = {title: {document: 1} for title, (document, _) in chosen.items()}
        self.dataset = {"default": {"test": retrieval_data(texts, relevant)}}
        self.data_loaded = True

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> dict[str, float]:
        """nDCG@10 of the queries whose page begins in each part of its document."""
        queries = self.dataset["default"]["test"]["queries"]
        titles = dict(zip(queries["id"], queries["text"], strict=True))
        found: dict[str, float] = {}
        for begin, end in zip(OFFSETS, (*OFFSETS[1:], None), strict=True):
            values = [
                ndcg_at_10(results.get(query, {}), qrels[query])
                for query, title in titles.items()
                if begin <= self.offsets[title] and (end is None or self.offsets[title] < end)
            ]
            found[f"ndcg_at_10_from_{begin}"] = float(np.mean(values))
            found[f"queries_from_{begin}"] = len(values)
        return found


class WikipediaReranking(_Local, AbsTaskRetrieval):
    metadata = _metadata(
        "WikipediaReranking",
        "Reranking",
        "ndcg_at_10",
        "Rank the articles that share words with a description.",
    )
    k_values = (1, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        import bm25s

        task = WikipediaRetrieval()
        task.part = self.part
        task.load_data()
        data = task.dataset["default"]["test"]
        documents = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
        texts = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
        relevant = {texts[query]: found for query, found in data["relevant_docs"].items()}
        index = bm25s.BM25()
        words = bm25s.tokenize(list(documents.values()), stopwords="en", show_progress=False)
        index.index(words, show_progress=False)
        asked = bm25s.tokenize(list(relevant), stopwords="en", show_progress=False)
        nearest, _ = index.retrieve(
            asked, corpus=np.array(list(documents)), k=CANDIDATES, show_progress=False
        )
        ranked = {
            text: sorted({*found, *map(str, ids)})
            for (text, found), ids in zip(relevant.items(), nearest, strict=True)
        }
        self.dataset = {"default": {"test": retrieval_data(documents, relevant, ranked)}}
        self.data_loaded = True


class _Bitext(_Local, AbsTaskBitextMining):
    lang: ClassVar[str]

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pairs = parallel_openings(self.part, self.lang, OPENING)
        columns = {"sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


def _bitext(name: str, language: str, code: str) -> TaskMetadata:
    about = f"Find the {language} page of an English one."
    return _metadata(name, "BitextMining", "accuracy", about, ("eng-Latn", code))


class OfficeBitextGerman(_Bitext):
    metadata = _bitext("OfficeBitextGerman", "German", "deu-Latn")
    lang = "de"


class OfficeBitextRussian(_Bitext):
    metadata = _bitext("OfficeBitextRussian", "Russian", "rus-Cyrl")
    lang = "ru"


class OfficeBitextJapanese(_Bitext):
    metadata = _bitext("OfficeBitextJapanese", "Japanese", "jpn-Jpan")
    lang = "ja"


def first_of_each(pairs: list[tuple[str, str]], most: int | None) -> list[tuple[str, str]]:
    """The first ``most`` texts of each label."""
    seen: Counter[str] = Counter()
    kept = []
    for text, label in pairs:
        seen[label] += 1
        if most is None or seen[label] <= most:
            kept.append((text, label))
    return kept


class _Classification(_Local, AbsTaskClassification):
    labels_of: ClassVar[str]
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
                    ("test", self.part, None),
                )
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


class _Clustering(_Local, AbsTaskClustering):
    labels_of: ClassVar[str]
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 2048
    n_clusters = 20

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        found = labelled(self.labels_of, self.part)
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


class GlossExamplePairs(_Local, AbsTaskPairClassification):
    metadata = _metadata(
        "GlossExamplePairs",
        "PairClassification",
        "max_ap",
        "Is the word used as defined?",
    )

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pairs = example_pairs(rows("wordnet", self.part), count=3000, seed=SEED)
        self.dataset = DatasetDict({"test": Dataset.from_list(pairs)})
        self.data_loaded = True


class WordNetSTS(_Local, AbsTaskSTS):
    metadata = _metadata(
        "WordNetSTS", "STS", "cosine_spearman", "How near are two definitions in WordNet's tree?"
    )
    min_score, max_score = 0, 1

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pairs = similarity_pairs(rows("wordnet", self.part), count=3000, seed=SEED)
        self.dataset = DatasetDict({"test": Dataset.from_list(pairs)})
        self.data_loaded = True


LOCAL_TASKS: tuple[type[AbsTask], ...] = (
    WikipediaRetrieval,
    WikipediaRetrievalFrench,
    WikipediaRetrievalSpanish,
    WordNetRetrieval,
    OfficeHelpRetrieval,
    OfficeLongRetrieval,
    WikipediaReranking,
    TopicClassification,
    CategoryClassification,
    TopicClustering,
    CategoryClustering,
    GlossExamplePairs,
    OfficeBitextGerman,
    OfficeBitextRussian,
    OfficeBitextJapanese,
    WordNetSTS,
)


def local_tasks(part: str = "test") -> dict[str, type[AbsTask]]:
    """Every local task by name, over the test split or the validation split.

    The validation tasks are named so, ``WordNetSTSValidation``: one cache keeps both.
    """
    if part == "test":
        return {task.metadata.name: task for task in LOCAL_TASKS}
    found = {}
    for task in LOCAL_TASKS:
        name = f"{task.metadata.name}{part.capitalize()}"
        metadata = task.metadata.model_copy(update={"name": name})
        found[name] = type(name, (task,), {"metadata": metadata, "part": part})
    return found


def text_kinds() -> dict[str, str]:
    """Task, of either split -> kind of its text: the name of the file that it is built from."""
    of = {"Wiki": "wikipedia", "Topi": "wikipedia", "Offi": "office_help"}
    names = (*local_tasks("test"), *local_tasks("validation"))
    return {name: of.get(name[:4], "wordnet") for name in names}
