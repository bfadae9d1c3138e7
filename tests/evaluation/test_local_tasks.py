"""The local tasks: built from the test split, as their descriptions say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from st_jv5.evaluation import corpora
from st_jv5.evaluation import local_tasks as local_tasks_module
from st_jv5.evaluation.far_tasks import FAR_TASKS, nearness
from st_jv5.evaluation.local_tasks import (
    LOCAL_TASKS,
    OfficeLongRetrieval,
    WikipediaReranking,
    WikipediaRetrieval,
    WikipediaRetrievalFrench,
    WikipediaRetrievalSpanish,
    local_tasks,
    text_kinds,
)
from st_jv5.evaluation.task_families import (
    LocalClassification,
    LocalPairs,
    LocalRetrieval,
    LocalSTS,
)


def test_local_tasks_read_the_test_split_and_share_no_training_text():
    from st_jv5.evaluation.corpora import rows

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


# ------------------------------------------------------------------------------------- far tasks

FAR = [task.metadata.name for task in FAR_TASKS]


def texts_under_test(task: Any) -> Iterator[str]:
    """Each text of a task's test part, as often as it stands there."""
    if "default" in task.dataset:
        found = task.dataset["default"]["test"]
        yield from [*found["queries"]["text"], *found["corpus"]["text"]]
        return
    for column in ("text", "sentences", "sentence1", "sentence2"):
        if column in task.dataset["test"].column_names:
            yield from task.dataset["test"][column]


@cache
def loaded(name: str, part: str) -> Any:
    task = dict(zip(local_tasks(), local_tasks(part).values(), strict=True))[name]()
    task.load_data()
    return task


def test_every_task_names_the_file_of_its_text():
    kinds = text_kinds()
    assert set(kinds) == {*local_tasks(), *local_tasks("validation")}
    assert set(kinds.values()) == {path.stem for path in corpora.DATA.glob("*.parquet")}


def test_each_far_kind_has_every_family():
    families: dict[str, set[str]] = {}
    for task in FAR_TASKS:
        families.setdefault(task.text_kind, set()).add(task.metadata.type)
    for kind, types in families.items():
        assert types >= {"Retrieval", "PairClassification", "Classification", "Clustering"}, kind


@pytest.mark.parametrize("name", FAR)
def test_no_far_text_stands_in_two_parts(name):
    test, validation = (loaded(name, part) for part in ("test", "validation"))
    parts = [set(texts_under_test(task)) for task in (test, validation)]
    assert min(map(len, parts)) > 200
    assert not parts[0] & parts[1]
    if isinstance(test, LocalClassification):
        assert not set(test.dataset["train"]["text"]) & (parts[0] | parts[1])


@pytest.mark.parametrize(("kind", "group"), [("docstrings", "module"), ("factbook", "country")])
def test_no_group_of_far_texts_stands_in_two_parts(kind, group):
    parts = ("train", "validation", "test")
    held = [{row[group] for row in corpora.rows(kind, part)} for part in parts]
    assert len(set().union(*held)) == sum(map(len, held))


@pytest.mark.parametrize("part", ["test", "validation"])
@pytest.mark.parametrize("name", [t.metadata.name for t in LOCAL_TASKS])
def test_tasks_repeat_nothing_and_teach_every_label(name, part):
    task = loaded(name, part)
    if isinstance(task, LocalClassification):
        taught = np.bincount(task.dataset["train"]["label"])
        assert set(task.dataset["test"]["label"]) == set(range(len(taught)))
        assert taught.min() >= task.samples_per_label
    if isinstance(task, LocalSTS) or (isinstance(task, LocalPairs) and name in FAR):
        found = task.dataset["test"]
        pairs = list(zip(found["sentence1"], found["sentence2"], strict=True))
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        assert all(one != other for one, other in pairs)
    if isinstance(task, LocalRetrieval) and name in FAR:
        documents = task.dataset["default"]["test"]["corpus"]["text"]
        assert len(set(documents)) == len(documents)


def test_what_the_splits_share_is_what_is_told():
    """The module's docstring: some tasks are easier than their splits look."""
    told = re.findall(r"\d+", local_tasks_module.__doc__.split("share some text")[1])
    found = []
    for name, query in (("wikipedia", "description"), ("office_help", "title")):
        trained = {row[query] for row in corpora.rows(name, "train")}
        asked = [row[query] for row in corpora.rows(name, "test") if row[query]]
        found += [sum(text in trained for text in asked), len(asked)]
    pages, trained = (
        [four_words(row["body"]) for row in corpora.rows("office_help", split)]
        for split in ("test", "train")
    )
    assert [*map(int, told)] == [*found, copies(pages, trained), len(pages)]


def four_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(4)), strict=False))


def copies(pages: list[set[tuple[str, ...]]], trained: list[set[tuple[str, ...]]]) -> int:
    """Pages that share half or more of all their four-word sequences with another."""
    holders = defaultdict(list)
    for number, own in enumerate(trained):
        for words in own:
            holders[words].append(number)
    shared = [Counter(n for words in page for n in holders.get(words, ())) for page in pages]
    return sum(
        any(2 * both >= len(page) + len(trained[n]) - both for n, both in counts.items())
        for page, counts in zip(pages, shared, strict=True)
    )


def test_near_functions_are_of_one_module():
    rows = [
        {"module": module, "topic": topic}
        for module, topic in (
            ("scipy.stats._a", "statistics"),
            ("scipy.stats._a", "statistics"),
            ("scipy.stats._b", "statistics"),
            ("statsmodels.b.c", "statistics"),
            ("scipy.signal.d", "signal processing"),
        )
    ]
    assert [nearness(rows[0], row) for row in rows[1:]] == [3, 2, 1, 0]
    scores = loaded("DocstringSTS", "test").dataset["test"]["score"]
    assert sorted(set(scores)) == [0, 1 / 3, 2 / 3, 1]
    assert len({scores[:].count(score) for score in set(scores)}) == 1
