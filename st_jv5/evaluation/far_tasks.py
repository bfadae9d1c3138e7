"""mteb tasks on kinds of text that no recipe trains on, built as those in local_tasks.py are.

============================  ==================  ==================================================
task                          mteb type           built from (test split, English)
============================  ==================  ==================================================
DebianRetrieval               Retrieval           short -> long description of a package
DebianPairs                   PairClassification  short and long of one package, or of two of a
                                                  section that share words
DebianSectionClassification   Classification      section of a long description, 14 topics
DebianSectionClustering       Clustering          the same sections of short descriptions
DocstringRetrieval            Retrieval           summary -> the prose that follows it
DocstringPairs                PairClassification  summary and prose of one function, or of two of a
                                                  module that share words
DocstringSTS                  STS                 summaries: of one module 1, of one subpackage 2/3,
                                                  of one topic 1/3, of two topics 0
DocstringClassification       Classification      topic of the prose, 15 topics
DocstringClustering           Clustering          the same topics of summaries
FactbookRetrieval             Retrieval           question on a country -> the text that answers it,
                                                  where the text names the country
FactbookPairs                 PairClassification  such a question and its text, or the text of
                                                  another country that shares words
FactbookClassification        Classification      subject of a text, 16 subjects
FactbookClustering            Clustering          the same subjects
============================  ==================  ==================================================

Of shared words the most: a wrong pair is the hardest that the group has. Countries stand in
wikipedia.parquet too, in other words: the factbook is the nearest of the far kinds.

A model that trained on a far file's train split has read near text: to it the task is near.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from functools import cache
from typing import Any

from st_jv5.evaluation.corpora import packages, rows
from st_jv5.evaluation.task_families import (
    SEED,
    Local,
    LocalClassification,
    LocalClustering,
    LocalPairs,
    LocalRetrieval,
    LocalSTS,
    described,
)

MOST_DOCUMENTS = 1_200
MOST_PER_LABEL = 90
WORDS = re.compile(r"\w{3,}")


def of_one_or_two(
    rows: list[dict[str, Any]], one: str, other: str, group: str
) -> list[dict[str, Any]]:
    """Columns ``one`` and ``other`` of one row (1), and of two rows of a group (0).

    The second row is that of the group whose ``other`` has most words in common with the first's.
    Rows alone in their group are left out.
    """
    groups: dict[str, list[tuple[dict[str, Any], frozenset[str]]]] = defaultdict(list)
    for row in rows:
        groups[row[group]].append((row, frozenset(WORDS.findall(row[other].lower()))))
    pairs = []
    for members in groups.values():
        for row, words in members:
            near = [(jaccard(words, theirs), x) for x, theirs in members if x is not row]
            if near:
                another = max(near, key=lambda shared: shared[0])[1]
                pairs.append({"sentence1": row[one], "sentence2": row[other], "labels": 1})
                pairs.append({"sentence1": row[one], "sentence2": another[other], "labels": 0})
    return pairs


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of the words that both have."""
    return len(one & other) / len(one | other)


class DebianRetrieval(LocalRetrieval):
    metadata = described(
        "DebianRetrieval", "Retrieval", "ndcg_at_10", "Find a package's description by its title."
    )
    text_kind, query, document = "debian", "short", "long"

    def found(self) -> list[dict[str, Any]]:
        return packages(self.part)[:MOST_DOCUMENTS]


class DebianPairs(LocalPairs):
    metadata = described(
        "DebianPairs",
        "PairClassification",
        "cosine_ap",
        "Are title and description of one package?",
    )
    text_kind = "debian"

    def pairs(self) -> list[dict[str, Any]]:
        found = packages(self.part)[:MOST_DOCUMENTS]
        return of_one_or_two(found, "short", "long", "section")


class DebianSectionClassification(LocalClassification):
    metadata = described(
        "DebianSectionClassification", "Classification", "accuracy", "Name a package's section."
    )
    text_kind, labels_of, most_per_label = "debian", "section", MOST_PER_LABEL


class DebianSectionClustering(LocalClustering):
    metadata = described(
        "DebianSectionClustering", "Clustering", "v_measure", "Group packages by section."
    )
    text_kind, labels_of, most_per_label = "debian", "section_of_short", MOST_PER_LABEL


class DocstringRetrieval(LocalRetrieval):
    metadata = described(
        "DocstringRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find a function's documentation by its summary.",
    )
    text_kind, query, document = "docstrings", "summary", "rest"


class DocstringPairs(LocalPairs):
    metadata = described(
        "DocstringPairs",
        "PairClassification",
        "cosine_ap",
        "Are summary and documentation of one function?",
    )
    text_kind = "docstrings"

    def pairs(self) -> list[dict[str, Any]]:
        return of_one_or_two(self.found(), "summary", "rest", "module")


class DocstringSTS(LocalSTS):
    metadata = described(
        "DocstringSTS",
        "STS",
        "cosine_spearman",
        "How near do two functions stand in the tree of packages?",
    )
    text_kind = "docstrings"

    def pairs(self) -> list[dict[str, Any]]:
        return tree_pairs(self.found(), count=1_400)


def tree_pairs(found: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Summaries of two functions, a quarter at each of four distances in the tree of packages."""
    draw = random.Random(SEED)
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    levels = [0] * 4

    @cache
    def by_nearness(module: str, topic: str) -> list[list[dict[str, Any]]]:
        here: dict[str, Any] = {"module": module, "topic": topic}
        groups: list[list[dict[str, Any]]] = [[] for _ in levels]
        for row in found:
            groups[nearness(here, row)].append(row)
        return groups

    for _ in range(400 * count):
        level = levels.index(min(levels))
        one = draw.choice(found)
        group = by_nearness(one["module"], one["topic"])[level]
        near = [row for row in group if row is not one]
        if not near:
            continue
        both = sorted((one["summary"], draw.choice(near)["summary"]))
        key = (both[0], both[1])
        if key not in pairs:
            pairs[key] = {"sentence1": both[0], "sentence2": both[1], "score": level / 3}
            levels[level] += 1
        if len(pairs) == count:
            break
    return list(pairs.values())


def nearness(one: dict[str, Any], other: dict[str, Any]) -> int:
    """3 in one module, 2 in one subpackage (``scipy.stats``), 1 of one topic, or 0."""
    if one["module"] == other["module"]:
        return 3
    if one["module"].split(".")[:2] == other["module"].split(".")[:2]:
        return 2
    return int(one["topic"] == other["topic"])


class DocstringClassification(LocalClassification):
    metadata = described(
        "DocstringClassification", "Classification", "accuracy", "Name a function's topic."
    )
    text_kind, labels_of = "docstrings", "library_topic"


class DocstringClustering(LocalClustering):
    metadata = described(
        "DocstringClustering", "Clustering", "v_measure", "Group functions by topic."
    )
    text_kind, labels_of = "docstrings", "library_topic_of_summary"


def named(part: str) -> list[dict[str, Any]]:
    """Texts on countries that name the country, or begin its name: Franc, for France and French."""
    found = rows("factbook", part)
    return [row for row in found if row["country"][:5].lower() in row["text"].lower()]


class FactbookRetrieval(LocalRetrieval):
    metadata = described(
        "FactbookRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Find the text that answers a question on a country.",
    )
    text_kind, query, document = "factbook", "question", "text"

    def found(self) -> list[dict[str, Any]]:
        asked = {row["text"] for row in named(self.part)}
        return [
            row if row["text"] in asked else row | {"question": ""}  # a document alone
            for row in super().found()
        ]


class FactbookPairs(LocalPairs):
    metadata = described(
        "FactbookPairs",
        "PairClassification",
        "cosine_ap",
        "Does the text answer the question on a country?",
    )
    text_kind = "factbook"

    def pairs(self) -> list[dict[str, Any]]:
        return of_one_or_two(named(self.part), "question", "text", "subject")


class FactbookClassification(LocalClassification):
    metadata = described(
        "FactbookClassification",
        "Classification",
        "accuracy",
        "Name the subject of a text on a country.",
    )
    text_kind, labels_of = "factbook", "country_subject"


class FactbookClustering(LocalClustering):
    metadata = described(
        "FactbookClustering", "Clustering", "v_measure", "Group texts on countries."
    )
    text_kind, labels_of = "factbook", "country_subject"


FAR_TASKS: tuple[type[Local], ...] = (
    DebianRetrieval,
    DebianPairs,
    DebianSectionClassification,
    DebianSectionClustering,
    DocstringRetrieval,
    DocstringPairs,
    DocstringSTS,
    DocstringClassification,
    DocstringClustering,
    FactbookRetrieval,
    FactbookPairs,
    FactbookClassification,
    FactbookClustering,
)
