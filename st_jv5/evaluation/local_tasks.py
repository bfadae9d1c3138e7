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
HeldOutTopic...          both                five of the topics, which laptop.yaml holds out
HeldOutCategory...       both                20 of the categories, likewise
GlossExamplePairs        PairClassification  gloss and example of one synset, or of two of a
                                             category
OfficeBitextGerman       BitextMining        openings of one help page in English and German; also
                                             ...Russian, ...Japanese
WordNetSTS               STS                 glosses of two synsets, scored 1 / (1 + path length)
=======================  ==================  =======================================================

The classifiers' few training texts come from the train split; a clustering score is the mean of
twenty clusterings, for one alone varies by several points.

Tasks on text that no recipe trains on are in far_tasks.py. ``text_kind`` tells whether a task
is near or far: near to a model trained on the train split of the file of that name.

The splits are by article and page, and share some text. 75 of the 962 test descriptions of
Wikipedia and 38 of the 221 test titles of help pages are queries of the train split too, with other
articles and pages; 20 of the 221 English test pages are near copies of a training page (half or
more of their four-word sequences in common). So these tasks are somewhat easier than they look for
a model that was trained on the train split.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskBitextMining, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from st_jv5.evaluation.corpora import (
    example_pairs,
    joined_pages,
    labelled,
    parallel_openings,
    similarity_pairs,
)
from st_jv5.evaluation.far_tasks import FAR_TASKS
from st_jv5.evaluation.samples import ndcg_at_10
from st_jv5.evaluation.task_families import (
    SEED,
    Local,
    LocalClassification,
    LocalClustering,
    LocalPairs,
    LocalRetrieval,
    LocalSTS,
    described,
    retrieval_data,
)

LONG_CHARACTERS = 8_000
"""Least length of a joined document, about 2,000 tokens."""
OFFSETS = (0, 2_000, 6_000)
"""Where the parts of a joined document begin, in characters, whose pages are scored apart."""
CANDIDATES = 30
"""Candidates that BM25 gives for reranking."""
OPENING = 400
"""Characters of a page in bitext mining."""


class WikipediaRetrieval(LocalRetrieval):
    metadata = described(
        "WikipediaRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find an article by its description.",
    )
    text_kind, query, document = "wikipedia", "description", "extract"


class WikipediaRetrievalFrench(LocalRetrieval):
    metadata = described(
        "WikipediaRetrievalFrench",
        "Retrieval",
        "ndcg_at_10",
        "Find a French article by its description.",
        ("fra-Latn",),
    )
    text_kind, query, document, lang = "wikipedia", "description", "extract", "fr"


class WikipediaRetrievalSpanish(LocalRetrieval):
    metadata = described(
        "WikipediaRetrievalSpanish",
        "Retrieval",
        "ndcg_at_10",
        "Find a Spanish article by its description.",
        ("spa-Latn",),
    )
    text_kind, query, document, lang = "wikipedia", "description", "extract", "es"


class WordNetRetrieval(LocalRetrieval):
    metadata = described(
        "WordNetRetrieval", "Retrieval", "ndcg_at_10", "Find the definition of a word."
    )
    text_kind, query, document = "wordnet", "lemmas", "gloss"


class OfficeHelpRetrieval(LocalRetrieval):
    metadata = described(
        "OfficeHelpRetrieval", "Retrieval", "ndcg_at_10", "Find a help page by its title."
    )
    text_kind, query, document = "office_help", "title", "body"


class OfficeLongRetrieval(Local, AbsTaskRetrieval):
    metadata = described(
        "OfficeLongRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find the long document that holds the help page of a title.",
    )
    text_kind = "office_help"
    k_values = (1, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pages = self.found()
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
        by_part: dict[str, float] = {}
        for begin, end in zip(OFFSETS, (*OFFSETS[1:], None), strict=True):
            values = [
                ndcg_at_10(results.get(query, {}), qrels[query])
                for query, title in titles.items()
                if begin <= self.offsets[title] and (end is None or self.offsets[title] < end)
            ]
            by_part[f"ndcg_at_10_from_{begin}"] = float(np.mean(values))
            by_part[f"queries_from_{begin}"] = len(values)
        return by_part


class WikipediaReranking(Local, AbsTaskRetrieval):
    metadata = described(
        "WikipediaReranking",
        "Reranking",
        "ndcg_at_10",
        "Rank the articles that share words with a description.",
    )
    text_kind = "wikipedia"
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
            asked,
            corpus=np.array(list(documents)),
            k=CANDIDATES,
            show_progress=False,
            backend_selection="numpy",  # jax, where it is installed, takes most of a GPU's memory
        )
        ranked = {
            text: sorted({*found, *map(str, ids)})
            for (text, found), ids in zip(relevant.items(), nearest, strict=True)
        }
        self.dataset = {"default": {"test": retrieval_data(documents, relevant, ranked)}}
        self.data_loaded = True


class _Bitext(Local, AbsTaskBitextMining):
    text_kind = "office_help"
    lang: ClassVar[str]
    """Language of the other side."""

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        pairs = parallel_openings(self.part, self.lang, OPENING)
        columns = {"sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


def _bitext(name: str, language: str, code: str) -> TaskMetadata:
    about = f"Find the {language} page of an English one."
    return described(name, "BitextMining", "accuracy", about, ("eng-Latn", code))


class OfficeBitextGerman(_Bitext):
    metadata = _bitext("OfficeBitextGerman", "German", "deu-Latn")
    lang = "de"


class OfficeBitextRussian(_Bitext):
    metadata = _bitext("OfficeBitextRussian", "Russian", "rus-Cyrl")
    lang = "ru"


class OfficeBitextJapanese(_Bitext):
    metadata = _bitext("OfficeBitextJapanese", "Japanese", "jpn-Jpan")
    lang = "ja"


class TopicClassification(LocalClassification):
    metadata = described(
        "TopicClassification", "Classification", "accuracy", "Name an article's topic."
    )
    text_kind, labels_of = "wikipedia", "topic"


class CategoryClassification(LocalClassification):
    metadata = described(
        "CategoryClassification",
        "Classification",
        "accuracy",
        "Name a definition's category.",
    )
    text_kind, labels_of = "wordnet", "category"


class TopicClustering(LocalClustering):
    metadata = described("TopicClustering", "Clustering", "v_measure", "Group articles by topic.")
    text_kind, labels_of = "wikipedia", "topic"


class CategoryClustering(LocalClustering):
    metadata = described(
        "CategoryClustering", "Clustering", "v_measure", "Group definitions by lexicographer file."
    )
    text_kind, labels_of = "wordnet", "category"


class HeldOutTopicClassification(LocalClassification):
    metadata = described(
        "HeldOutTopicClassification",
        "Classification",
        "accuracy",
        "Name an article's topic, of every second topic by the alphabet.",
    )
    text_kind, labels_of = "wikipedia", "topic_held_out"


class HeldOutCategoryClassification(LocalClassification):
    metadata = described(
        "HeldOutCategoryClassification",
        "Classification",
        "accuracy",
        "Name a definition's category, of every second category by the alphabet.",
    )
    text_kind, labels_of = "wordnet", "category_held_out"


class HeldOutTopicClustering(LocalClustering):
    metadata = described(
        "HeldOutTopicClustering",
        "Clustering",
        "v_measure",
        "Group articles by topic, of every second topic by the alphabet.",
    )
    text_kind, labels_of = "wikipedia", "topic_held_out"


class HeldOutCategoryClustering(LocalClustering):
    metadata = described(
        "HeldOutCategoryClustering",
        "Clustering",
        "v_measure",
        "Group definitions by category, of every second category by the alphabet.",
    )
    text_kind, labels_of = "wordnet", "category_held_out"


class GlossExamplePairs(LocalPairs):
    metadata = described(
        "GlossExamplePairs",
        "PairClassification",
        "cosine_ap",
        "Is the word used as defined?",
    )
    text_kind = "wordnet"

    def pairs(self) -> list[dict[str, Any]]:
        return example_pairs(self.found(), count=3000, seed=SEED)


class WordNetSTS(LocalSTS):
    metadata = described(
        "WordNetSTS", "STS", "cosine_spearman", "How near are two definitions in WordNet's tree?"
    )
    text_kind = "wordnet"

    def pairs(self) -> list[dict[str, Any]]:
        return similarity_pairs(self.found(), count=3000, seed=SEED)


LOCAL_TASKS: tuple[type[Local], ...] = (
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
    HeldOutTopicClassification,
    HeldOutCategoryClassification,
    HeldOutTopicClustering,
    HeldOutCategoryClustering,
    GlossExamplePairs,
    OfficeBitextGerman,
    OfficeBitextRussian,
    OfficeBitextJapanese,
    WordNetSTS,
    *FAR_TASKS,
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


@cache
def labels_asked() -> dict[str, tuple[str, frozenset[str]]]:
    """Classification or clustering task, of either split -> kind of its text, and its labels."""
    tasks = {**local_tasks("test"), **local_tasks("validation")}
    return {
        name: (task.text_kind, frozenset(label for _, label in labelled(task.labels_of, task.part)))
        for name, task in tasks.items()
        if issubclass(task, (LocalClassification, LocalClustering))
    }


def text_kinds() -> dict[str, str]:
    """Task, of either split -> kind of its text: the stem of its file in training/data."""
    tasks = {**local_tasks("test"), **local_tasks("validation")}
    return {name: task.text_kind for name, task in tasks.items()}
