"""Training sets: prepared rows as the trainer takes them.

A training row has text columns and one ``label``: rows of the teacher store for the first columns,
or a score. Texts stay where :class:`~st_jv5.recipe.data.rows.Rows` has them on disk; what is added
to them is written beside them and memory mapped, too.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from st_jv5.recipe.config import LABELLED, DataSet
from st_jv5.recipe.data.mine import mine
from st_jv5.recipe.data.prepare import BLOCK_ROWS
from st_jv5.recipe.data.rows import Rows
from st_jv5.recipe.strict import RecipeError
from st_jv5.roles import is_negative
from st_jv5.teacher.shard import Array, first_of_each
from st_jv5.vector_source import Vectors


def teacher_roles(spec: DataSet, labelled: bool = False) -> list[str]:
    """The roles whose texts the teacher embeds: every one that a batch distils or mines.

    Labelled texts only where a loss asks the teacher for them.
    """
    if spec.kind in LABELLED:
        return ["text"] if labelled else []
    if spec.kind in ("synset_pairs", "scored"):
        return []
    return [role for role in spec.columns if not is_negative(role)]


def replay_set(rows: Rows, store: Vectors) -> Dataset:
    """A data set's texts as the trainer takes them to distil: ``text``, and its row of the store.

    Args:
        rows: Rows of any kind; both sides of pairs are used, each text once.
        store: The teacher's vectors of single texts.
    """

    def make() -> Iterator[Mapping[str, Array]]:
        numbers = rows.distinct()
        hashes = rows.all_hashes()
        for begin in range(0, len(numbers), BLOCK_ROWS):
            block = numbers[begin : begin + BLOCK_ROWS]
            yield {"text": block, "label": _found(rows, block, hashes[block], store)[:, None]}

    return _with_texts(rows, rows.beside("replay", store.state(), make))


def training_set(
    spec: DataSet,
    rows: Rows,
    stores: Mapping[str, Vectors],
    seed: int,
    labelled: bool = False,
    draws: int = 1,
) -> Dataset:
    """Rows as the trainer takes them; ``stores`` has each role's teacher vectors.

    Labelled rows are drawn ``draws`` times over, each time with other positives and negatives.

    ====================  =============================================  ==========================
    kind                  text columns                                   label
    ====================  =============================================  ==========================
    pairs, long           query, positive, negative_1..n                 store rows of the first
                                                                         two; without teacher none
    scored, synset_pairs  query, positive                                score
    texts                 text                                           store row
    labelled, paragraphs  query, positive, negative_1..n                 of all: store row (or -1),
                                                                         classes
    ====================  =============================================  ==========================
    """
    if spec.kind in ("scored", "synset_pairs"):
        scored = rows.dataset.select_columns(["query", "positive", "score"])
        return scored.rename_column("score", "label")
    if spec.kind in LABELLED:
        return _labelled_set(spec, rows, stores if labelled else {}, seed, draws)
    roles = [role for role in ("query", "positive", "text") if role in spec.columns]
    negatives = sorted(role for role in spec.columns if is_negative(role))
    if not stores:
        return rows.dataset.select_columns([*roles, *negatives])
    states = [stores[role].state() for role in roles]
    if spec.negatives:
        return _mined_set(spec, rows, stores, states)
    labels = rows.beside("-".join(roles), states, lambda: _labels(rows, roles, stores))
    texts = rows.dataset.select_columns([*roles, *negatives])
    return concatenate_datasets([texts, labels], axis=1)


def _labels(
    rows: Rows, roles: Sequence[str], stores: Mapping[str, Vectors]
) -> Iterator[Mapping[str, Array]]:
    for begin in range(0, len(rows), BLOCK_ROWS):
        part = slice(begin, begin + BLOCK_ROWS)
        columns = [
            _found(rows, rows.numbers(role)[part], rows.hashes(role)[part], stores[role])
            for role in roles
        ]
        yield {"label": np.stack(columns, axis=1)}


def _found(rows: Rows, numbers: Array, hashes: Array, store: Vectors) -> Array:
    """Rows of the store, of texts by their numbers and hashes."""
    found = store.find(hashes)
    if (found < 0).any():
        absent = np.flatnonzero(found < 0)
        shown = [text[:80] for text in rows.texts(numbers[absent[:3]])]
        raise RecipeError(
            f"data_sets.{rows.name}: {len(absent)} of {len(found)} texts have no vector of the "
            f"teacher, such as {shown}; run the stage 'teacher' first"
        )
    return found


def _with_texts(rows: Rows, numbers: Dataset) -> Dataset:
    """A table of text numbers, read as the texts themselves."""
    return numbers.with_transform(LookUp(rows))


class LookUp:
    """Gives texts for their numbers."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """All columns except the label."""
        texts = self.rows.texts
        return {name: own if name == "label" else texts(own) for name, own in batch.items()}

    @property
    def content(self) -> str:
        """What identifies these texts, for a checkpoint."""
        return self.rows.content


def _named(numbers: Array) -> dict[str, Array]:
    """Columns of query, positive and negatives, from one matrix."""
    names = ["query", "positive", *(f"negative_{i}" for i in range(1, numbers.shape[1] - 1))]
    return dict(zip(names, numbers.T, strict=True))


# -------------------------------------------------------------------------------- hard negatives


def _mined_set(
    spec: DataSet, rows: Rows, stores: Mapping[str, Vectors], states: list[Any]
) -> Dataset:
    """Pairs with ``negative_1..n``: documents of other rows that the teacher finds near."""

    def make() -> Iterator[Mapping[str, Array]]:
        queries, query_of = first_of_each(rows.hashes("query"))
        documents, document_of = first_of_each(rows.hashes("positive"))
        of_query, of_document = rows.numbers("query")[queries], rows.numbers("positive")[documents]
        query_rows = _found(rows, of_query, rows.hashes("query")[queries], stores["query"])
        document_rows = _found(
            rows, of_document, rows.hashes("positive")[documents], stores["positive"]
        )
        mined = mine(
            query_of, document_of, query_rows, document_rows, stores["query"], stores["positive"],
            spec.negatives,
        )  # fmt: skip
        if not len(mined):
            raise RecipeError(
                f"data_sets.{rows.name}: no row kept {spec.negatives} hard negatives among its "
                f"{len(documents)} distinct positives; lower data_sets.{rows.name}.negatives"
            )
        numbers = np.column_stack([of_query[mined[:, 0]], of_document[mined[:, 1:]]])
        labels = np.column_stack([query_rows[mined[:, 0]], document_rows[mined[:, 1]]])
        yield {**_named(numbers), "label": labels}

    return _with_texts(rows, rows.beside("mined", [spec.negatives, states], make))


# -------------------------------------------------------------------------------- classification


def _labelled_set(
    spec: DataSet, rows: Rows, stores: Mapping[str, Vectors], seed: int, draws: int
) -> Dataset:
    negatives = spec.negatives or 7

    def make() -> Iterator[Mapping[str, Array]]:
        first, which = first_of_each(rows.hashes("text"))
        own = labels_of_texts(rows, which, len(first))
        classes = np.full((len(own), max(map(len, own))), -1)
        for text, its in enumerate(own):
            classes[text, : len(its)] = sorted(its)
        known = np.full(len(first), -1)
        if stores:
            known = _found(rows, first, rows.hashes("text")[first], stores["text"])
        labels = np.column_stack([known, classes])
        for draw in range(draws):
            try:
                drawn = contrastive_rows(own, negatives, seed + 1_000_003 * draw)
            except ValueError as error:
                raise RecipeError(
                    f"data_sets.{rows.name}: {error}; add texts of other labels, or lower "
                    f"data_sets.{rows.name}.negatives"
                ) from error
            for begin in range(0, len(drawn), BLOCK_ROWS):
                texts = drawn[begin : begin + BLOCK_ROWS]
                yield {**_named(first[texts]), "label": labels[texts]}

    state = stores["text"].state() if stores else None
    what = "contrastive-known" if stores else "contrastive"
    return _with_texts(rows, rows.beside(what, [negatives, seed, draws, state], make))


def labels_of_texts(rows: Rows, which: Array, texts: int) -> list[frozenset[int]]:
    """The labels of each distinct text, numbered by their order in the alphabet.

    Args:
        rows: Labelled ones.
        which: int ``(rows,)``, the distinct text of each row.
        texts: How many distinct ones there are.
    """
    number = {label: place for place, label in enumerate(sorted(rows.labels))}
    found: list[frozenset[int]] = [frozenset()] * texts
    shared: dict[frozenset[int], frozenset[int]] = {}  # millions of texts have few sets of labels
    for text, label in zip(which.tolist(), rows.column("label"), strict=True):
        its = found[text] | {number[one] for one in ([label] if isinstance(label, str) else label)}
        found[text] = shared.setdefault(its, its)
    return found


def contrastive_rows(own: Sequence[frozenset[int]], negatives: int, seed: int) -> Array:
    """Rows of an anchor, one positive of its label and negatives of other labels.

    A text with several labels becomes one row per label (multilabel turned into single label); its
    negatives share none of its labels, and no negative is drawn twice in a row. Labels with a
    single text have no positive and give no row, but their texts serve as negatives.

    Args:
        own: The labels of each of ``n`` distinct texts.
        negatives: Number of negatives of each row.
        seed: Draws positives, negatives and the order of the rows.

    Returns:
        int64 ``(rows, 2 + negatives)``, places of texts: anchor, positive, negatives.

    Raises:
        ValueError: No text has a positive and so many negatives.

    Example:
        >>> contrastive_rows([frozenset({0}), frozenset({0}), frozenset({1})], 1, seed=0).tolist()
        [[1, 0, 2], [0, 1, 2]]
    """
    of_label: dict[int, list[int]] = {}
    for text, its in enumerate(own):
        for label in sorted(its):
            of_label.setdefault(label, []).append(text)
    draw, pool = random.Random(seed), range(len(own))
    enough: dict[frozenset[int], bool] = {}
    rows = array("q")
    for text, its in enumerate(own):
        if its not in enough:
            enough[its] = _has_others(own, its, negatives)
        if not enough[its]:
            continue
        for label in sorted(its):
            positives = of_label[label]
            if len(positives) < 2:
                continue
            positive = text
            while positive == text:
                positive = draw.choice(positives)
            chosen: list[int] = []
            while len(chosen) < negatives:
                other = draw.choice(pool)
                if not its & own[other] and other not in chosen:
                    chosen.append(other)
            rows.extend((text, positive, *chosen))
    if not rows:
        raise ValueError(
            f"no rows: {len(own)} texts in {len(of_label)} labels leave no anchor with a positive "
            f"and {negatives} negatives"
        )
    found = np.frombuffer(rows, dtype=np.int64).reshape(-1, 2 + negatives)
    order = array("q", range(len(found)))
    draw.shuffle(order)
    return found[np.frombuffer(order, dtype=np.int64)]


def _has_others(own: Sequence[frozenset[int]], its: frozenset[int], wanted: int) -> bool:
    """Whether so many texts share none of these labels."""
    found = 0
    for other in own:
        found += not its & other
        if found >= wanted:
            return True
    return wanted == 0
