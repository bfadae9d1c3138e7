"""The text under training/data: rows, pairs and labels, for training and for the local tasks alike.

``split`` is fixed in the files: train only on train, choose on validation, report on test.
"""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"


@cache
def rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one data file and split; wikipedia in English only."""
    table = pq.read_table(DATA / f"{name}.parquet").to_pylist()
    return [row for row in table if row["split"] == split and row.get("lang", "en") == "en"]


def path_similarity(one: dict[str, Any], other: dict[str, Any]) -> float:
    """WordNet's path similarity, 1 / (1 + edges between the synsets), over their hypernym paths.

    0 where the two have no common ancestor.
    """
    path = [one["synset"], *one["hypernym_path"].split()]
    depth = {
        synset: steps
        for steps, synset in enumerate([other["synset"], *other["hypernym_path"].split()])
    }
    edges = [steps + depth[synset] for steps, synset in enumerate(path) if synset in depth]
    return 1 / (1 + min(edges)) if edges else 0.0


def similarity_pairs(synsets: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Gloss pairs over the whole range of path similarity.

    A third are synsets under one parent, a third under one grandparent, a third any two of a part
    of speech.
    """
    draw = random.Random(seed)
    pool = [row for row in synsets if row["hypernym_path"]]
    kin: list[dict[str, list[dict[str, Any]]]] = [
        defaultdict(list),
        defaultdict(list),
        defaultdict(list),
    ]
    for row in pool:
        path = row["hypernym_path"].split()
        for level, key in enumerate((path[0], path[min(1, len(path) - 1)], row["synset"][0])):
            kin[level][key].append(row)
    pairs: list[dict[str, Any]] = []
    seen: set[frozenset[str]] = set()
    while len(pairs) < count:
        one = draw.choice(pool)
        path = one["hypernym_path"].split()
        level = len(pairs) % 3
        key = (path[0], path[min(1, len(path) - 1)], one["synset"][0])[level]
        other = draw.choice(kin[level][key])
        ids = frozenset((one["synset"], other["synset"]))
        if len(ids) < 2 or ids in seen or one["gloss"] == other["gloss"]:
            if draw.random() < 0.999:  # an only child: draw another
                continue
            level = 2
        seen.add(ids)
        pairs.append(
            {
                "sentence1": one["gloss"],
                "sentence2": other["gloss"],
                "score": path_similarity(one, other),
            }
        )
    return pairs


def example_pairs(synsets: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Gloss and example of one synset (1), or the example of another of its category (0)."""
    draw = random.Random(seed)
    with_example = [row for row in synsets if row["example"]]
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in with_example:
        by_category[row["category"]].append(row)
    pairs = []
    for row in draw.sample(with_example, len(with_example)):
        others = by_category[row["category"]]
        other = draw.choice(others)
        if other["gloss"] == row["gloss"] or other["example"] == row["example"]:
            continue
        pairs.append({"sentence1": row["gloss"], "sentence2": row["example"], "labels": 1})
        pairs.append({"sentence1": row["gloss"], "sentence2": other["example"], "labels": 0})
        if len(pairs) >= count:
            break
    return pairs


def labelled(name: str, split: str) -> list[tuple[str, str]]:
    """(text, label): extracts with a topic, or glosses of nouns and verbs with a category."""
    if name == "topic":
        return [(r["extract"], r["topic"]) for r in rows("wikipedia", split) if r["topic"]]
    return [
        (r["gloss"], r["category"])
        for r in rows("wordnet", split)
        if r["category"].startswith(("noun.", "verb.")) and r["category"] != "noun.Tops"
    ]
