"""Data sets of a recipe, from files to what the trainer takes.

A training row has text columns and one ``label``: rows of the teacher store for the first columns,
or a score.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from st_jv5.teacher.views import Vectors
from training.config import LABELLED, DataSet, is_negative
from training.corpora import joined_pages, similarity_pairs
from training.decontaminate import text_hash
from training.strict import RecipeError

ROOT = Path(__file__).parent.parent

Rows = list[dict[str, Any]]

LEAST_PART = 60
"""Characters of a paragraph that stands by itself."""
SYNSET_PAIRS = 10_000
"""Scored pairs that are drawn where a recipe sets no limit."""


def read_rows(name: str, spec: DataSet, seed: int, barred: Collection[int] = frozenset()) -> Rows:
    """The rows of a data set: filtered, limited, under their roles, duplicates dropped.

    A row with an empty text is dropped, and one with a text whose hash (:func:`text_hash`) is
    barred. synset_pairs keeps the file's own columns; long rows are joined documents.
    """
    table = _load(name, spec)
    wanted = list(dict.fromkeys([*spec.where, *spec.columns.values()]))
    for column in wanted:
        if column not in table.column_names:
            raise RecipeError(
                f"data_sets.{name}: {spec.path} has no column {column!r}; it has "
                f"{', '.join(table.column_names)}"
            )
    columns = wanted if spec.kind != "synset_pairs" else table.column_names
    values = {column: table[column][:] for column in columns}
    keep = [True] * len(table)
    for column, pattern in spec.where.items():
        # Each distinct value is matched once: a column that is filtered on has few.
        fits = {value: matches(value, pattern) for value in set(map(str, values[column]))}
        keep = [so_far and fits[str(v)] for so_far, v in zip(keep, values[column], strict=True)]
    roles = spec.columns if spec.kind != "synset_pairs" else {name: name for name in columns}
    kept = list(compress(zip(*(values[column] for column in roles.values()), strict=True), keep))
    if spec.kind != "synset_pairs":
        texts = [place for place, role in enumerate(roles) if role not in ("label", "score")]
        kept = [row for row in kept if all(row[place] for place in texts)]
        kept = list({tuple(map(str, row)): row for row in kept}.values())
    found = [dict(zip(roles, row, strict=True)) for row in kept]
    if not found:
        raise RecipeError(f"data_sets.{name}: no row of {spec.path} passes `where`")
    if barred:
        found = [row for row in found if not any(text_hash(t) in barred for t in texts_of(row))]
        if not found:
            raise RecipeError(f"data_sets.{name}: every row has a text that `decontaminate` bars")
    # Sets of one file share their first rows, so that the teacher embeds fewer texts.
    random.Random(f"{seed} {spec.path}").shuffle(found)
    if spec.kind == "synset_pairs":
        return found
    found = found[: spec.limit]
    if spec.kind == "paragraphs":
        return paragraphs(found)
    return join_rows(found, spec.characters, seed) if spec.kind == "long" else found


def texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    """What a model reads of a row: its labels and scores aside."""
    return (value for role, value in row.items() if isinstance(value, str) and role != "label")


def labels_of(rows: Rows) -> set[str]:
    """Every label of labelled rows; one row may have several."""
    found: set[str] = set()
    for row in rows:
        found |= {row["label"]} if isinstance(row["label"], str) else set(row["label"])
    return found


def paragraphs(rows: Rows) -> Rows:
    """The parts of texts that have several, under their text's number as label.

    A text of lines is parted at the ends of lines, one of a single line into two halves between
    sentences. Parts of fewer than :data:`LEAST_PART` characters go to the part before. A part that
    stands in several texts belongs to none.
    """
    every = [_parts(row["text"]) for row in rows]
    count = Counter(part for parts in every for part in set(parts))
    found: Rows = []
    for number, parts in enumerate(every):
        own = [part for part in dict.fromkeys(parts) if count[part] == 1]
        if len(own) > 1:
            found += [{"text": part, "label": str(number)} for part in own]
    return found


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for part in _pieces(text):
        if parts and min(len(part), len(parts[-1])) < LEAST_PART:
            parts[-1] += f" {part}"
        else:
            parts.append(part)
    return parts


def _pieces(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    middle = len(text) // 2
    ends = [found.end() for found in re.finditer(r"[.!?]\s", text)]
    if not ends:
        return [text]
    end = min(ends, key=lambda place: abs(place - middle))
    return [text[:end].strip(), text[end:].strip()]


def join_rows(rows: Rows, characters: int, seed: int) -> Rows:
    """Join the positives of rows into documents; each query asks for the one that holds its own."""
    pages = [{"page": str(index), "body": row["positive"]} for index, row in enumerate(rows)]
    return [
        {"query": rows[int(page)]["query"], "positive": document.text}
        for document in joined_pages(pages, characters, seed)
        for page in document.offsets
    ]


def matches(value: str, pattern: str) -> bool:
    """Whether a value fits one of the patterns joined by ``|``, and none that starts with ``!``.

    Example:
        >>> matches("noun.animal", "noun.*|verb.*|!noun.Tops")
        True
    """
    wanted: list[str] = []
    barred: list[str] = []
    for part in pattern.split("|"):
        (barred if part.startswith("!") else wanted).append(part.removeprefix("!"))
    return any(fnmatchcase(value, part) for part in wanted) and not any(
        fnmatchcase(value, part) for part in barred
    )


def _load(name: str, spec: DataSet) -> Dataset:
    path = ROOT / spec.path
    if spec.is_file:
        if not path.is_file():
            raise RecipeError(f"data_sets.{name}.path: no file {spec.path}")
        kind = "parquet" if path.suffix == ".parquet" else "json"
        return load_dataset(kind, data_files=str(path), split="train")
    return load_dataset(
        spec.path, spec.subset or None, split=spec.split, revision=spec.revision or None
    )


def teacher_texts(spec: DataSet, rows: Rows, labelled: bool = False) -> dict[str, list[str]]:
    """Role -> the texts that the teacher embeds: every one that a batch distils or mines.

    Labelled texts only where a loss asks the teacher for them.
    """
    if spec.kind in LABELLED:
        return {"text": [row["text"] for row in rows]} if labelled else {}
    if spec.kind in ("synset_pairs", "scored"):
        return {}
    roles = [role for role in spec.columns if not is_negative(role)]
    return {role: [row[role] for row in rows] for role in roles}


def replay_texts(rows: Rows) -> list[str]:
    """Every text of a data set, each once: of pairs both sides."""
    return list(dict.fromkeys(chain.from_iterable(map(texts_of, rows))))


def replay_set(rows: Rows, store: Vectors) -> Dataset:
    """A data set's texts as the trainer takes them to distil: ``text``, and its row of the store.

    Args:
        rows: Of any kind but synset_pairs.
        store: The teacher's vectors of single texts.
    """
    texts = replay_texts(rows)
    labels = store.rows(texts)[:, None].tolist()
    return Dataset.from_dict({"text": texts, "label": labels})


def training_set(
    name: str,
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
    pairs, long           query, positive, negative_1..n                 store rows of the first two
    scored                query, positive                                score
    texts                 text                                           store row
    labelled, paragraphs  query, positive, negative_1..n                 of all: store row (or -1),
                                                                         classes
    synset_pairs          query, positive                                path similarity
    ====================  =============================================  ==========================
    """
    if spec.kind == "synset_pairs":
        pairs = similarity_pairs(rows, spec.limit or SYNSET_PAIRS, seed)
        return Dataset.from_dict(
            {
                "query": [pair["sentence1"] for pair in pairs],
                "positive": [pair["sentence2"] for pair in pairs],
                "label": [pair["score"] for pair in pairs],
            }
        )
    if spec.kind == "scored":
        columns = {role: [row[role] for row in rows] for role in ("query", "positive")}
        return Dataset.from_dict({**columns, "label": [float(row["score"]) for row in rows]})
    if spec.kind in LABELLED:
        return _labelled_set(spec, rows, stores if labelled else {}, seed, draws)
    roles = [role for role in ("query", "positive", "text") if role in spec.columns]
    negatives = sorted(role for role in spec.columns if is_negative(role))
    found = Dataset.from_dict({r: [row[r] for row in rows] for r in [*roles, *negatives]})
    if spec.negatives:
        found = mine(found, stores["query"], stores["positive"], spec.negatives)
    labels = np.stack([stores[role].rows(found[role]) for role in roles], axis=1)
    return found.add_column("label", labels.tolist())


def _labelled_set(
    spec: DataSet, rows: Rows, stores: Mapping[str, Vectors], seed: int, draws: int
) -> Dataset:
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    own = _labels_of(texts, labels)
    found = Dataset.from_list(
        [
            row
            for draw in range(draws)
            for row in contrastive_rows(texts, labels, spec.negatives or 7, seed + 1_000_003 * draw)
        ]
    )
    numbers = {label: number for number, label in enumerate(sorted(set().union(*own.values())))}
    most = max(map(len, own.values()))
    of_text = {
        text: [*sorted(numbers[label] for label in its), *[-1] * (most - len(its))]
        for text, its in own.items()
    }
    columns = []
    for column in found.column_names:
        its = found[column][:]
        known = stores["text"].rows(its) if stores else np.full(len(its), -1)
        columns.append(np.column_stack([known, [of_text[text] for text in its]]))
    return found.add_column("label", np.stack(columns, axis=1).tolist())


# -------------------------------------------------------------------------------- hard negatives


class _StoredTeacher(SentenceTransformer):
    """A teacher that looks its vectors up, for the host's miner."""

    def __init__(self, queries: Vectors, documents: Vectors) -> None:
        super().__init__(modules=[torch.nn.Identity()], device="cpu")
        self.queries, self.documents = queries, documents

    def encode_query(self, inputs: Sequence[str], **kwargs: Any) -> np.ndarray[Any, Any]:
        return _vectors(self.queries, inputs)

    def encode_document(self, inputs: Sequence[str], **kwargs: Any) -> np.ndarray[Any, Any]:
        return _vectors(self.documents, inputs)


def _vectors(store: Vectors, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    vectors: np.ndarray[Any, Any] = store.gather(store.rows(texts)).float().numpy()
    return vectors


def mine(pairs: Dataset, queries: Vectors, documents: Vectors, negatives: int) -> Dataset:
    """Add ``negative_1..n``: the positives of other rows that the teacher finds nearest the query.

    The host's miner on stored vectors. A document counts as a false negative, and is passed over,
    from 95% of the positive's cosine on (the paper does not say how it mines).
    """
    mined = mine_hard_negatives(
        pairs,
        _StoredTeacher(queries, documents),
        anchor_column_name="query",
        positive_column_name="positive",
        range_max=50,
        relative_margin=0.05,
        num_negatives=negatives,
        output_format="n-tuple",
        verbose=False,
    )
    if not len(mined):
        raise RecipeError(f"no row kept {negatives} hard negatives; lower data_sets.*.negatives")
    return mined


# -------------------------------------------------------------------------------- classification


def _labels_of(texts: Sequence[str], labels: Sequence[str | Iterable[str]]) -> dict[str, set[str]]:
    """Text -> all its labels."""
    found: dict[str, set[str]] = defaultdict(set)
    for text, label in zip(texts, labels, strict=True):
        found[text] |= {label} if isinstance(label, str) else set(label)
    return found


def contrastive_rows(
    texts: Sequence[str],
    labels: Sequence[str | Iterable[str]],
    negatives: int,
    seed: int,
) -> list[dict[str, str]]:
    """Rows of an anchor, one positive of its label and negatives of other labels.

    A text with several labels becomes one row per label (multilabel turned into single label); its
    negatives share none of its labels, and no negative is drawn twice in a row. Labels with a
    single text have no positive and give no row, but their texts serve as negatives.

    Args:
        texts: ``n`` texts.
        labels: ``n`` labels, or collections of labels.
        negatives: Per row; the paper's 7.
        seed: Of all draws.

    Returns:
        ``query``, ``positive``, ``negative_1..``; shuffled.
    """
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} texts but {len(labels)} labels")
    of_text = _labels_of(texts, labels)
    of_label: Mapping[str, list[str]] = defaultdict(list)
    for text, own in of_text.items():
        for label in sorted(own):
            of_label[label].append(text)
    draw = random.Random(seed)
    pool = list(of_text)
    rows = []
    for text, own in of_text.items():
        if sum(not own & of_text[other] for other in pool[: 50 * negatives]) < negatives and (
            sum(not own & of_text[other] for other in pool) < negatives
        ):
            continue
        for label in sorted(own):
            positives = of_label[label]
            if len(positives) < 2:
                continue
            positive = text
            while positive == text:
                positive = draw.choice(positives)
            row = {"query": text, "positive": positive}
            chosen: list[str] = []
            while len(chosen) < negatives:
                other = draw.choice(pool)
                if not own & of_text[other] and other not in chosen:
                    chosen.append(other)
            rows.append(row | {f"negative_{i + 1}": other for i, other in enumerate(chosen)})
    if not rows:
        raise ValueError(
            f"no rows: {len(of_text)} texts in {len(of_label)} labels leave no anchor with a "
            f"positive and {negatives} negatives"
        )
    draw.shuffle(rows)
    return rows
