"""Which column of a user's own data is what: by its name, and by what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from st_jv5.recipe.config import ROLES, DataSet, is_negative, kind_of
from st_jv5.recipe.data.sources import first_table
from st_jv5.recipe.strict import RecipeError
from st_jv5.texts import Table

NAMES: Mapping[str, tuple[str, ...]] = {
    "query": (
        "query", "question", "anchor", "sentence1", "sentence_1", "sent1", "text1", "text_1",
        "instruction", "prompt", "input",
    ),
    "positive": (
        "positive", "positives", "pos", "positive_passages", "positive_ctxs", "answer", "document",
        "doc", "passage", "response", "sentence2", "sentence_2", "sent2", "text2", "text_2",
        "output", "completion", "chosen", "context", "text", "content", "body",
    ),
    "text": ("text", "sentence", "content", "document", "doc", "passage", "body"),
    "label": ("label_text", "label", "labels", "category", "class", "topic", "intent"),
    "score": ("score", "similarity", "similarity_score", "relatedness", "relatedness_score"),
}  # fmt: skip
"""Role -> names of columns, in lower case, the first that is there counting. A file without a
positive has its texts in the column of a ``text``, of a ``query``, or in its only column."""
NEGATIVE = re.compile(
    r"(?:hard_?)?neg(?:ative)?s?(?:_?\d+)?|negative_passages|hard_negative_ctxs|rejected"
)
MOST_NEGATIVES = 7
"""Most negatives of a row if a recipe names no columns."""
CHATS = ("messages", "conversations", "positive_messages", "negative_messages", "dialog")
"""Columns of chats, as for language models."""
WANTED = (
    "wanted are texts: query and positive (and negative_1, ... or score), text, or text and label"
)


def with_columns(name: str, spec: DataSet) -> DataSet:
    """A data set whose columns and kind are said, by the first rows of its first file.

    Args:
        name: Name of the data set in the recipe.
        spec: Settings of the data set, without columns.

    Raises:
        RecipeError: No such file, or columns whose names or values tell no role.
    """
    if not spec.is_local:
        raise RecipeError(
            f"data_sets.{name}.columns is missing: of a data set on the Hub the columns must be "
            f"named, such as columns: {{query: question, positive: answer}}"
        )
    path, table = first_table(name, spec)
    try:
        columns = roles_of(table, spec.kind)
    except ValueError as error:
        raise RecipeError(f"data_sets.{name}: {path} {error}") from error
    return replace(spec, columns=columns, kind=spec.kind or kind_of(columns))


def roles_of(table: Table, kind: str = "") -> dict[str, str]:
    """Role -> column, of some rows.

    Args:
        table: Column -> values.
        kind: Kind of the data set; empty: what the columns say.

    Raises:
        ValueError: What the columns lack, to go on behind the file's name.

    Example:
        >>> roles_of({"Question": ["who?"], "Answer": ["me"], "id": [7]})
        {'query': 'Question', 'positive': 'Answer'}
        >>> roles_of({"query": ["who?"], "pos": [["me", "I"]], "neg": [["you", "she"]]})
        {'query': 'query', 'positive': 'pos', 'negative_1': 'neg', 'negative_2': 'neg'}
    """
    known = {_plain(column): column for column in reversed(table)}
    for name in CHATS:
        if name in known:
            raise ValueError(f"has chats in column {known[name]!r}; {WANTED}")
    found = {role: known[name] for role, names in NAMES.items()
             for name in reversed(names) if name in known}  # fmt: skip
    if kind == "":
        _check_label(found)
    paired = "query" in found and "positive" in found and found["query"] != found["positive"]
    if kind:
        wanted = ROLES[kind]
        paired = "query" in wanted
    else:
        told = [role for role in (("score",) if paired else ("label",)) if role in found]
        wanted = {*(("query", "positive") if paired else ("text",)), *told}
    if "text" in wanted and "text" not in found:
        lone = next(iter(table)) if len(table) == 1 and not _separated(table) else None
        if (column := found.get("query") or lone) is not None:
            found["text"] = column
    order = ("query", "positive", "text", "label", "score")
    if missing := [role for role in order if role in wanted and role not in found]:
        raise ValueError(
            f"has no column that is known as {' or '.join(missing)}: it has "
            f"{', '.join(map(str, table))}; {WANTED}; name them, such as "
            f"columns: {{query: COLUMN, positive: COLUMN}}{_separated(table)}"
        )
    columns = {role: found[role] for role in order if role in wanted}
    if wanted == ROLES["pairs"] and kind != "long":
        columns |= _negatives(table, known)
    for role, column in columns.items():
        _check_shape(role, column, table[column])
    return columns


def _plain(column: object) -> str:
    return re.sub(r"[\s-]+", "_", str(column).strip().lower())


def _separated(table: Table) -> str:
    """What to say of a file with one column, whose name has the others in it."""
    only = str(next(iter(table), ""))
    marks = [mark for mark in (";", "\t", "|") if mark in only]
    if len(table) > 1 or not marks:
        return ""
    return f"; its columns stand between {marks[0]!r}: save them with commas, or tabs as .tsv"


def _check_label(found: Mapping[str, str]) -> None:
    """A label beside two texts may be a score, or say which of them match."""
    if {"query", "positive", "label"} <= {*found} and "score" not in found:
        query, positive, label = found["query"], found["positive"], found["label"]
        if _plain(label) in ("label", "labels", "label_text"):
            raise ValueError(
                f"has two texts and a {label!r} in each row. Is it a score? Say columns: "
                f"{{query: {query}, positive: {positive}, score: {label}}}. Do all rows match? Say "
                f"columns: {{query: {query}, positive: {positive}}}"
            )


def _negatives(table: Table, known: Mapping[str, str]) -> dict[str, str]:
    """The roles of the negatives: a column each, or as many of a list as half of the rows have."""
    roles: list[str] = []
    names = [name for name in known if NEGATIVE.fullmatch(name)]
    for name in sorted(names, key=_number):
        values = table[known[name]]
        counts = sorted(len(value) if isinstance(value, list) else 1 for value in values if value)
        roles += [known[name]] * max(1, counts[len(counts) // 2] if counts else 1)
    taken = enumerate(roles[:MOST_NEGATIVES], start=1)
    return {f"negative_{number}": column for number, column in taken}


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+$", name)
    return int(digits.group()) if digits else 0, name


def _check_shape(role: str, column: str, values: Sequence[Any]) -> None:
    """An error for a column whose values are nothing that can be read as texts."""
    if role in ("label", "score"):
        return
    row, value = next(((i, v) for i, v in enumerate(values) if v is not None), (0, ""))
    lists = role == "positive" or is_negative(role)
    inner = value[0] if lists and isinstance(value, list) and value else value
    if isinstance(inner, dict) and isinstance(value, list) and "text" in inner:
        return
    if isinstance(inner, dict | list) and not (lists and inner == []):
        raise ValueError(
            f"has {value!r:.60} in column {column!r}, row {row} (counted from 0), as {role}; "
            f"it must be a text{', or a list of texts' if lists else ''}"
        )
