"""Which column of somebody's own rows is what: by its name, and by what it holds."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from st_jv5.texts import Table, read_tables

RowT = TypeVar("RowT")

ROLES: dict[str, set[str]] = {
    "pairs": {"query", "positive"},
    "scored": {"query", "positive", "score"},
    "texts": {"text"},
    "labelled": {"text", "label"},
    "paragraphs": {"text"},
    "long": {"query", "positive"},
    "synset_pairs": set(),
}
"""Kind of data set -> the roles that its columns must fill."""

NO_TEXTS = ("label", "score")
"""Roles that a model does not read."""

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
"""That are taken of a row where a recipe names no columns."""
CHATS = ("messages", "conversations", "positive_messages", "negative_messages", "dialog")
"""Columns of chats, as for language models."""
WANTED = (
    "wanted are texts: query and positive (and negative_1, ... or score), text, or text and label"
)


def roles_of(table: Table, kind: str = "") -> dict[str, str]:
    """Role -> column, of some rows.

    Args:
        table: Column -> values.
        kind: Of the data set; empty: what the columns say.

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
            f"{', '.join(map(str, table))}; {WANTED}; rename them, or write "
            f"in a recipe which is which: columns: {{query: COLUMN, positive: COLUMN}}"
            f"{_separated(table)}"
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
                f"has two texts and a {label!r} in each row. Is it a score? Name it score, or say "
                f"columns: {{query: {query}, positive: {positive}, score: {label}}}. Do all rows "
                f"match? Leave it out, or say columns: {{query: {query}, positive: {positive}}}"
            )


def _negatives(table: Table, known: Mapping[str, str]) -> dict[str, str]:
    """The roles of the negatives: those that half of the rows with any have, and one at least.

    A column is one, or one for each place of its lists.
    """
    names = sorted((name for name in known if NEGATIVE.fullmatch(name)), key=_number)
    texts = {known[name]: [*map(_texts_in, table[known[name]])] for name in names}
    rows = sum(map(any, zip(*texts.values(), strict=True)))
    having = {
        (column, place): sum(count > place for count in counts)
        for column, counts in texts.items()
        for place in range(max(counts, default=0))
    }
    least = min((rows + 1) // 2, max(having.values(), default=0))
    taken = [column for (column, _), count in having.items() if count >= least] or [*texts][:1]
    return {f"negative_{number}": c for number, c in enumerate(taken[:MOST_NEGATIVES], start=1)}


def _texts_in(value: Any) -> int:
    """How many texts a value holds that are not blank."""
    texts = value if isinstance(value, list) else [value]
    return sum(bool(text.strip() if isinstance(text, str) else text) for text in texts)


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+$", name)
    return int(digits.group()) if digits else 0, name


def _check_shape(role: str, column: str, values: Sequence[Any]) -> None:
    """An error for a column whose values are nothing that can be read as texts."""
    if role in NO_TEXTS:
        return
    row, value = next(((i, v) for i, v in enumerate(values) if v is not None), (0, ""))
    lists = role == "positive" or is_negative(role)
    inner = value[0] if lists and isinstance(value, list) and value else value
    if isinstance(inner, dict) and isinstance(value, list) and "text" in inner:
        return
    if isinstance(inner, dict | list) and not (lists and inner == []):
        raise ValueError(
            f"has {value!r:.60} in column {column!r}, row {row} (counted from 0), as {role}; "
            f"wanted is a text{', or a list of texts' if lists else ''}"
        )


def read_rows(path: str | Path) -> tuple[str, list[dict[str, Any]]]:
    """Kind and rows of a file whose columns are known by their names, as a recipe reads them.

    A row of several positives is a row of each. One without a query, positive or text is passed
    over; a hard negative that is missing is left out of its row.

    Args:
        path: As :func:`st_jv5.texts.read_tables` takes it.

    Returns:
        ``pairs``, ``scored``, ``labelled`` or ``texts``; and of each row role -> text, a label as
        it stands there, or a finite score.

    Raises:
        ValueError: What the columns lack; a value that is no text, or no score. Names the file.
    """
    rows: list[dict[str, Any]] = []
    columns: dict[str, str] = {}
    read = 0
    for table in filter(None, read_tables(path)):
        try:
            columns = columns or roles_of(table)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
        count = len(next(iter(table.values())))
        of_roles = {role: table.get(c) or [None] * count for role, c in columns.items()}
        for number, values in enumerate(zip(*of_roles.values(), strict=True), start=read):
            try:
                rows += _rows_of(dict(zip(of_roles, values, strict=True)), columns)
            except ValueError as error:
                raise ValueError(f"{path}, row {number} (counted from 0): {error}") from error
        read += count
    if not rows:
        raise ValueError(f"{path} is empty: it has no row with a text")
    return kind_of(columns), rows


def spread(rows: Sequence[RowT], most: int) -> list[RowT]:
    """So many rows at most, from all over.

    Example:
        >>> spread(range(100), 3)
        [0, 50, 99]
    """
    last = max(1, min(most, len(rows)) - 1)
    return [rows[round(i * (len(rows) - 1) / last)] for i in range(min(most, len(rows)))]


def _rows_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What a row is read as: one of each positive.

    Args:
        row: Role -> value.
        columns: Role -> column: of those that read one list each negative takes its own.
    """
    found: dict[str, Any] = {}
    positives: list[str] = []
    for role, value in row.items():
        if role == "score":
            found[role] = _score(value)
        elif role == "label":
            if value is None:
                raise ValueError("it has no label")
            found[role] = value
        else:
            may_be_list = is_negative(role) or (role == "positive" and "score" not in row)
            texts = _texts(role, value, may_be_list)
            place = [one for one in columns if columns[one] == columns[role]].index(role)
            if not is_negative(role) and not texts:
                return
            if place < len(texts):
                found[role] = texts[place]
            positives = texts if role == "positive" else positives
    if not positives:
        yield found
    for positive in positives:
        yield {**found, "positive": positive}


def _texts(role: str, value: Any, may_be_list: bool) -> list[str]:
    """The texts of a value that are not blank."""
    found = []
    for one in value if isinstance(value, list) and may_be_list else [value]:
        text = passage(one) if isinstance(value, list) else "" if one is None else one
        if not isinstance(text, str):
            raise ValueError(f"{value!r:.60} as {role} is not text")
        if text.strip():
            found.append(text)
    return found


def _score(value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"the score {value!r:.60} is no number")
    return score


def passage(value: Any) -> str | None:
    """The text of a list's element: itself, or its ``title`` and ``text``; None: it has none.

    Example:
        >>> passage({"docid": "7", "title": "Finches", "text": "They sing."})
        'Finches They sing.'
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        title = value.get("title")
        return f"{title} {value['text']}" if isinstance(title, str) and title else value["text"]
    return None


def kind_of(roles: Collection[str]) -> Literal["", "pairs", "scored", "texts", "labelled"]:
    """The kind of a data set whose columns have these roles; empty: none has them.

    Example:
        >>> kind_of(["query", "positive", "negative_1"]), kind_of(["text", "label"])
        ('pairs', 'labelled')
    """
    named = {role for role in roles if not is_negative(role)}
    kinds: tuple[Literal["pairs", "scored", "texts", "labelled"], ...]
    kinds = ("pairs", "scored", "texts", "labelled")
    return next((kind for kind in kinds if ROLES[kind] == named), "")


def is_negative(role: str) -> bool:
    """Whether a role of a pair's columns is a hard negative: ``negative_1``, ..."""
    return role.startswith("negative_")
