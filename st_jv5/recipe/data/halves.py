"""Held-out rows in two halves: to choose on the one, and to report on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from st_jv5.recipe.data.decontaminate import text_hash
from st_jv5.roles import NO_TEXTS, is_negative

Row = Mapping[str, Any]


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Two parts of about one size, of which no text of the one stands in the other.

    Rows of an equal query, positive or text (:func:`text_hash`) go together, and so do those that
    others lead to. Hard negatives do not count.

    Example:
        >>> halves([{"text": "a"}, {"text": "b"}, {"text": "A."}])
        ([{'text': 'a'}, {'text': 'A.'}], [{'text': 'b'}])
    """
    found: tuple[list[Row], list[Row]] = ([], [])
    numbers: dict[int, int] = {}
    links = [
        (place, numbers.setdefault(text_hash(row[role]), len(numbers)))
        for place, row in enumerate(rows)
        for role in row
        if role not in NO_TEXTS and not is_negative(role)
    ]
    if not links:
        return found
    places, texts = np.array(links).T
    size = len(rows) + len(numbers)
    graph = coo_matrix((np.ones(len(links)), (places, len(rows) + texts)), shape=(size, size))
    _, group_of = connected_components(graph, directed=False)
    groups: dict[int, list[Row]] = {}
    for row, group in zip(rows, group_of[: len(rows)].tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    for own in groups.values():
        found[len(found[0]) > len(found[1])].extend(own)
    return found
