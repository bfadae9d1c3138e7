"""The local tasks: built from the test split, as their descriptions say."""

from __future__ import annotations

import numpy as np

from eval.local_tasks import (
    OfficeLongRetrieval,
    WikipediaReranking,
    WikipediaRetrieval,
    WikipediaRetrievalFrench,
    WikipediaRetrievalSpanish,
)
from training import corpora


def test_local_tasks_read_the_test_split_and_share_no_training_text():
    from training.corpora import rows

    task = WikipediaRetrieval()
    task.load_data()
    data = task.dataset["default"]["test"]
    train = {row["extract"] for row in rows("wikipedia", "train")}
    assert len(data["corpus"]) == 980
    assert not train & set(data["corpus"]["text"])
    queries = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    assert len(set(queries.values())) == len(queries)  # equal queries share their documents
    assert max(len(documents) for documents in data["relevant_docs"].values()) > 3


def test_each_language_has_its_own_articles():
    sizes = {}
    for task in (WikipediaRetrieval(), WikipediaRetrievalFrench(), WikipediaRetrievalSpanish()):
        task.load_data()
        data = task.dataset["default"]["test"]
        sizes[task.metadata.name] = len(data["corpus"])
        assert set(data["relevant_docs"]) == set(data["queries"]["id"])
    assert list(sizes.values()) == [980, 1006, 618]


def test_a_long_document_holds_each_of_its_pages_at_the_offset_that_is_told():
    pages = corpora.rows("office_help", "test")
    documents = corpora.joined_pages(pages, 8000, seed=0)
    bodies = {page["page"]: page["body"] for page in pages}
    held = [page for document in documents for page in document.offsets]
    assert sorted(held) == sorted(bodies)
    for document in documents:
        assert len(document.text) >= 8000
        for page, offset in document.offsets.items():
            assert document.text[offset:].startswith(bodies[page])
    ten = [{"page": str(i), "body": "x" * 10} for i in range(10)]
    assert [len(d.offsets) for d in corpora.joined_pages(ten, 40, seed=0)] == [4, 6]


def test_long_documents_are_scored_by_the_place_of_the_page():
    task = OfficeLongRetrieval()
    task.load_data()
    data = task.dataset["default"]["test"]
    titles = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    qrels = data["relevant_docs"]
    results = {  # right for the first part alone
        query: dict(qrels[query]) if task.offsets[title] < 2000 else {}
        for query, title in titles.items()
    }
    scores = task.task_specific_scores({}, qrels, results, "test", "default")
    assert scores["ndcg_at_10_from_0"] == 1
    assert scores["ndcg_at_10_from_2000"] == scores["ndcg_at_10_from_6000"] == 0
    counts = [scores[f"queries_from_{begin}"] for begin in (0, 2000, 6000)]
    assert sum(counts) == len(titles)
    assert min(counts) >= 20


def test_reranking_candidates_share_words_and_hold_the_relevant():
    task = WikipediaReranking()
    task.load_data()
    data = task.dataset["default"]["test"]
    corpus = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    texts = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    for query, ids in data["top_ranked"].items():
        assert set(data["relevant_docs"][query]) <= set(ids)
        assert 30 <= len(ids) <= 30 + len(data["relevant_docs"][query])

    def shared(query: str, ids: list[str]) -> float:
        asked = set(texts[query].lower().split())
        return float(np.mean([len(asked & set(corpus[i].lower().split())) for i in ids]))

    some = list(texts)[:50]
    near = np.mean([shared(query, data["top_ranked"][query]) for query in some])
    assert near > 1.5 * np.mean([shared(query, list(corpus)) for query in some])


def test_parallel_pages_are_the_same_page_and_told_apart():
    for lang, count in (("de", 180), ("ru", 140), ("ja", 90)):
        pairs = corpora.parallel_openings("test", lang, 400)
        assert len(pairs) > count
        english = {row["body"][:400]: row["page"] for row in corpora.rows("office_help", "test")}
        other = corpora.rows("office_help", "test", lang)
        pages = {row["body"][:400]: row["page"] for row in other}
        assert all(english[one] == pages[two] for one, two in pairs)
        assert len({one for one, _ in pairs}) == len({two for _, two in pairs}) == len(pairs)
