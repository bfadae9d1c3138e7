"""The four tasks: their names, aliases, prompts and LoRA dropout.

Training, the teacher, encoding and evaluation read this table. A saved model has its own copy in
``st_jv5.json``; the table is used for new models only.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

logger = logging.getLogger(__name__)

PROMPTS: Mapping[str, str] = {"query": "Query: ", "document": "Document: "}
"""Prompt name -> prompt, with one trailing space (section 3 of arXiv:2602.15547).

A model encodes and trains with its own ``prompts``. These are used for a new model whose base has
no prompts.
"""

DEFAULT_PROMPT_NAME = "document"

BASE = "base"
"""The name of the backbone without an adapter."""

LABEL_COLUMNS = ("label", "labels", "score", "scores")
"""The columns that sentence-transformers' collator takes for labels; every other column is text."""

QUERY_COLUMN = re.compile(r"(quer(y|ies)|anchors?|questions?)(_?\d+)?", re.IGNORECASE)
"""What a column of queries is called."""

DOCUMENT_COLUMN = re.compile(
    r"(positive|negative|document|passage|answer|response|context)s?(_?\d+)?", re.IGNORECASE
)
"""What a column of documents is called."""


@dataclass(frozen=True)
class Task:
    """What one adapter is for.

    An alias that is also the name of one of the task's prompts selects that prompt:
    ``task="query"`` is the retrieval adapter with the query prompt.
    """

    name: str
    prompts: Mapping[str, str] = field(default_factory=lambda: {"document": PROMPTS["document"]})
    """Prompt name -> prompt text."""
    aliases: tuple[str, ...] = ()
    """Other names under which ``encode`` finds the task."""
    dropout: float = 0.1
    """LoRA dropout while training, a probability."""


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("retrieval", prompts=PROMPTS, aliases=("query", "document")),
        Task("text-matching"),
        Task("clustering"),
        Task("classification", dropout=0.05),
    )
}


class Blend(Mapping[str, float]):
    """Several adapters at once, each with a weight; the heaviest first.

    It equals a dict of the same weights, but is hashable and immutable.

    Example:
        >>> blend = Blend({"classification": 0.3, "retrieval": 0.7})
        >>> str(blend), blend == {"retrieval": 0.7, "classification": 0.3}
        ('0.7 retrieval + 0.3 classification', True)
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            is_number = isinstance(weight, Real) and not isinstance(weight, bool)
            if not is_number or not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be a finite number, not {weight!r}")
        heaviest_first = sorted(weights.items(), key=lambda part: (-abs(part[1]), part[0]))
        self._weights = {name: float(weight) for name, weight in heaviest_first}

    def __getitem__(self, name: str) -> float:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __hash__(self) -> int:
        return hash(frozenset(self._weights.items()))

    def __repr__(self) -> str:
        return repr(self._weights)

    def __str__(self) -> str:
        told = " + ".join(f"{weight:g} {name}" for name, weight in self.items())
        return told.replace("+ -", "- ")


TaskName = str | Mapping[str, float]
"""What ``encode`` takes: a task, an alias, or a blend's weights by task."""


def column_prompts(task: Task, columns: Sequence[str]) -> dict[str, str]:
    """The prompt of each text column, as the trainer's ``args.prompts`` wants it.

    One of several text columns is the query and gets the task's query prompt if it has one; every
    other text column, and a single one, gets the document prompt. The query column is known by its
    name (query, anchor, question), or as the only column whose name is not one of a document
    (positive, negative, document, passage, answer, response, context). If names do not decide, it
    is the first column, and a warning is logged.

    Raises:
        ValueError: There is no text column.

    Example:
        >>> column_prompts(TASKS["retrieval"], ["query", "positive", "label"])
        {'query': 'Query: ', 'positive': 'Document: '}
        >>> column_prompts(TASKS["retrieval"], ["answer", "question"])
        {'answer': 'Document: ', 'question': 'Query: '}
    """
    texts = [column for column in columns if column not in (*LABEL_COLUMNS, "dataset_name")]
    if not texts:
        raise ValueError(f"no text column among {list(columns)}; a data set needs at least one")
    document = task.prompts["document"]
    query = task.prompts.get("query", document)
    prompts_of = dict.fromkeys(texts, document)
    if len(texts) > 1 and query != document:
        known = _query_column(texts)
        prompts_of[known or texts[0]] = query
        if known is None:
            logger.warning(
                "no name among the columns %s shows which one is the query: %r gets the prompt %r, "
                "the others get %r; rename the query column to query, or set prompts by column",
                *(texts, texts[0], query, document),
            )
    return prompts_of


def _query_column(columns: Sequence[str]) -> str | None:
    """The query column among several, by their names; None if the names do not decide."""
    for known in (
        [name for name in columns if QUERY_COLUMN.fullmatch(name)],
        [name for name in columns if not DOCUMENT_COLUMN.fullmatch(name)],
    ):
        if len(known) == 1:
            return known[0]
    return None


def unknown_name(kind: str, name: object, known: Iterable[str], owner: str) -> str:
    """The message for a name that is not known: lists what is, and suggests the nearest."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}; {owner} has: {', '.join(known)}{hint}"
