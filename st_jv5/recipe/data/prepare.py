"""Make :class:`~st_jv5.recipe.data.rows.Rows` of a source: filter, shuffle, write once."""

from __future__ import annotations

import logging
import random
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel
from filelock import FileLock
from tqdm.auto import tqdm

from st_jv5.evaluation.corpora import joined, similarity_pairs
from st_jv5.files import whole_folder, write_json
from st_jv5.recipe.config import DataSet, fingerprint, row_settings
from st_jv5.recipe.data.decontaminate import text_hash
from st_jv5.recipe.data.rows import Rows, is_list, write_tables
from st_jv5.recipe.data.sources import files_of, is_text, open_source
from st_jv5.recipe.strict import RecipeError
from st_jv5.roles import NO_TEXTS, is_negative
from st_jv5.teacher.shard import Array, hash_texts

logger = logging.getLogger("st_jv5.recipe")

FORMAT = 2
"""Version of the files and of how rows are chosen; with another, all are prepared again."""
BLOCK_BYTES = 64 << 20
"""About so much text is in memory at once."""
BLOCK_ROWS = 100_000
"""Most rows of it."""
LEAST_PART = 60
"""Characters of a paragraph that stands by itself."""
SYNSET_PAIRS = 10_000
"""Scored pairs that are drawn where a recipe sets no limit."""
COUNTS = {
    "read": "read",
    "filtered": "filtered",
    "empty": "empty",
    "repeated": "repeated",
    "barred": "barred",
    "held_out": "held out",
    "shared": "sharing a text with held-out rows",
    "taken": "taken",
}
"""What is logged of a source's rows: how many were read, dropped and why, and made of the rest."""


def read_rows(
    name: str,
    spec: DataSet,
    seed: int,
    folder: Path,
    *,
    barred: Collection[int] = frozenset(),
    held: Collection[int] = frozenset(),
    ready: Path | None = None,
) -> Rows:
    """The rows of a data set: filtered, limited, under their roles, duplicates dropped.

    They are prepared by the first process that asks for them, while others wait, and are there as a
    whole or not at all. A row with an empty text is dropped, and one with a text whose hash
    (:func:`text_hash`) is barred. synset_pairs becomes scored pairs, long rows joined documents,
    paragraphs the labelled parts of its texts. Held-out rows are not among them
    (:func:`read_held_out`), nor others that share a text with them.

    Args:
        name: Name of the data set in the recipe.
        spec: Settings of the data set.
        seed: Draws the order.
        folder: Folder of prepared rows; those of other settings or of a changed file are beside.
        barred: Hashes of texts that must not be trained on.
        held: Hashes of the texts of other sets' held-out rows (:func:`held_texts`).
        ready: A folder that may have these rows already: they are taken, and nothing is written.

    Raises:
        RecipeError: No such file, column or row; a value that is no text, label or score. Names the
            data set, its file, the column and the row.
    """
    if spec.held_out:
        own = held_texts(read_held_out(name, spec, seed, folder, barred=barred, ready=ready))
        held = frozenset(held) | own
    return _prepared(_Preparation(name, spec, seed, barred, held), folder, ready)


def read_held_out(
    name: str,
    spec: DataSet,
    seed: int,
    folder: Path,
    *,
    barred: Collection[int] = frozenset(),
    ready: Path | None = None,
) -> Rows:
    """The rows of a data set that are kept out of training: ``held_out`` of them.

    They have the same roles as those of :func:`read_rows`. Rows whose positives (or texts) are
    equal are drawn together, so that few others are lost to training.

    Args:
        name: As in :func:`read_rows`.
        spec: Settings of the data set.
        seed: Draws the rows, by a hash of their text.
        folder: Folder of prepared rows.
        barred: Hashes of texts that must not be tested on, either.
        ready: As in :func:`read_rows`.

    Raises:
        RecipeError: As in :func:`read_rows`; or the set has not so many rows, or several labels in
            a row, of which no task is made.
    """
    return _prepared(_Preparation(name, spec, seed, barred, held_out=True), folder, ready)


def held_texts(rows: Rows) -> frozenset[int]:
    """Hashes (:func:`text_hash`) of the queries, positives and texts of held-out rows."""
    roles = [role for role in rows.roles if not is_negative(role)]
    return frozenset(text_hash(text) for role in roles for text in rows.column(role))


def _prepared(preparation: _Preparation, folder: Path, ready: Path | None) -> Rows:
    label = re.sub(r"[^\w.-]+", "-", preparation.name)
    if preparation.held_out:
        label += ".held-out"
    place = folder / f"{label}-{fingerprint(preparation.key())}"
    if ready is not None and (ready / place.name).is_dir():
        return Rows(ready / place.name)
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{label}.lock"):
            if not place.is_dir():
                source = folder / f".{label}.source"
                for left in (source, *folder.glob(f".{label}-{'?' * 16}.partial")):  # by a kill
                    shutil.rmtree(left, ignore_errors=True)
                try:
                    with whole_folder(place) as partial:
                        preparation.read(source)
                        preparation.write(partial)
                finally:
                    shutil.rmtree(source, ignore_errors=True)
    return Rows(place)


class _Preparation:
    """Choose and order the rows of a source, and write them.

    Only row numbers and a hash of each row are held; texts are read a block at a time, twice.
    """

    def __init__(
        self,
        name: str,
        spec: DataSet,
        seed: int,
        barred: Collection[int],
        held: Collection[int] = frozenset(),
        held_out: bool = False,
    ) -> None:
        self.name, self.spec, self.seed, self.barred, self.held = name, spec, seed, barred, held
        self.held_out = held_out
        self.empty: Counter[str] = Counter()
        """Role -> rows that have no text in it."""
        self.filled: Counter[str] = Counter()
        """Negative -> rows that have another row's."""

    def key(self) -> dict[str, Any]:
        """Everything that the rows depend on."""
        spec = self.spec
        settings = row_settings(replace(spec, held_out=spec.held_out if self.held_out else 0))
        del settings["negatives"]
        file = None
        if spec.is_local:
            files = files_of(self.name, spec)
            seen = [[str(one), one.stat().st_size, one.stat().st_mtime_ns] for one in files]
            alone = len(files) == 1 and files[0] == spec.place(spec.paths[0])
            file = seen[0][1:] if alone else seen
        key = {"format": FORMAT, "settings": settings, "file": file, "seed": self.seed,
               "barred": fingerprint(sorted(self.barred))}  # fmt: skip
        return key | ({"held": fingerprint(sorted(self.held))} if self.held else {})

    def read(self, cache: Path) -> None:
        """Open the source."""
        self.source = open_source(self.name, self.spec, cache)
        self.roles, self.features = self.source.roles, self.source.features
        self.table = self.source.table
        self.step = _block_rows(self.table)
        if self.held_out and "label" in self.roles and is_list(self._type_of("label")):
            raise self.error(
                f"held_out: {self.spec.held_out} rows would be kept from training for nothing: "
                f"column {self.spec.columns['label']!r} has several labels in a row, of which no "
                f"task can be made; leave held_out out"
            )
        self.counts: Counter[str] = Counter(read=len(self.table))
        self.has = {
            role: np.zeros(len(self.table), bool) for role in self.roles if is_negative(role)
        }

    def _type_of(self, role: str) -> pa.DataType:
        return self.table.schema.field(self.roles[role]).type

    def error(self, message: str) -> RecipeError:
        """An error about the data set."""
        return RecipeError(f"data_sets.{self.name}: {message}")

    def write(self, folder: Path) -> None:
        """Leave the rows in a folder."""
        with ExitStack() as stack:
            files: dict[str, Any] = {}

            def hashed(table: pa.Table) -> pa.Table:
                for role in table.column_names:
                    if role not in NO_TEXTS:
                        if role not in files:
                            path = folder / f"{role}.hashes"
                            files[role] = stack.enter_context(path.open("wb"))
                        files[role].write(hash_texts(table[role].to_pylist()).tobytes())
                return table

            tables = self._tables(self._order())
            self.counts["taken"] = write_tables(folder / "rows.arrow", map(hashed, tables))
        if not self.counts["taken"]:
            raise self.error(
                f"{self.spec.named}: kind {self.spec.kind} gives no row from its texts"
            )
        if self.held:
            self.counts["held_out"] = min(self.spec.held_out, self.counts["shared"])
            self.counts["shared"] -= self.counts["held_out"]
        counts = {why: self.counts[why] for why in COUNTS}
        write_json(folder / "rows.json", {"name": self.name, "source": self.spec.named, **counts})
        if not self.held_out:
            words = [*COUNTS.items()][1:-1]
            lost = [f"{counts[why]:,} {word}{self._where_empty(why)}" for why, word in words
                    if counts[why]]  # fmt: skip
            lost += [f"{n:,} given another row's {role}" for role, n in self.filled.items()]
            told = f" ({', '.join(lost)})" if lost else ""
            taken, read = f"{counts['taken']:,}", f"{counts['read']:,}"
            logger.info("%s: %s of %s rows%s", self.name, taken, read, told)

    def _where_empty(self, why: str) -> str:
        roles = sorted(role for role, count in self.empty.items() if count)
        return f" in {' or '.join(roles)}" if why == "empty" and roles else ""

    # ------------------------------------------------------------------- which rows, in what order

    def _order(self) -> Array:
        """Numbers of the source's rows that are taken, int64, in the order of training."""
        fits: dict[tuple[str, str], bool] = {}
        rows, keys, words = [], [], []
        for begin in self._steps(range(0, len(self.table), self.step), "reading"):
            block = self.table.slice(begin, self.step)
            kept, key, of_words = self._kept(block, begin, fits)
            rows.append(kept + begin)
            keys.append(key)
            words.append(of_words)
        counts = self.counts
        if counts["read"] == counts["filtered"] + counts["empty"]:
            raise self.error(
                f"no row of {self.spec.named} passes `where` and has its texts: of "
                f"{counts['read']} rows `where` drops {counts['filtered']}, and {counts['empty']} "
                f"have an empty text"
            )
        found = np.concatenate(rows)
        if not len(found):
            raise self.error(
                f"no row is left to train on: of {counts['read']} rows {counts['barred']} have a "
                f"text that `decontaminate` bars, and {counts['shared']} one of a held-out row"
            )
        if self.spec.kind != "synset_pairs":
            first = np.sort(np.unique(np.concatenate(keys), return_index=True)[1])
            self.counts["repeated"] = len(found) - len(first)
            found = found[first]
            if self.held_out:
                return found[self._drawn(np.concatenate(words)[first])]
        # Sets of one file share their first rows, so that the teacher embeds fewer texts.
        order = array("q", range(len(found)))
        random.Random(f"{self.seed} {self.spec.named}").shuffle(order)
        taken = len(order) if self.spec.kind == "synset_pairs" else self.spec.limit
        return found[np.frombuffer(order, dtype=np.int64)[:taken]]

    def _drawn(self, words: Array) -> Array:
        """Places of the rows that are held out: those whose hashes are nearest one of the seed.

        Rows that are added may come before them, but bring none of the others in.
        """
        count = self.spec.held_out
        if count >= len(words):
            raise self.error(f"held_out: {count} of its {len(words)} rows; leave some to train on")
        return np.argsort(words ^ np.uint64(text_hash(f"seed {self.seed}")), kind="stable")[:count]

    def _kept(
        self, block: pa.Table, begin: int, fits: dict[tuple[str, str], bool]
    ) -> tuple[Array, Array, Array]:
        """Places in the block that are kept, a hash of each one's row, and of its words."""
        mask = np.ones(len(block), dtype=bool)
        for column, pattern in self.spec.where.items():
            mask &= self._matching(block[column], column, pattern, fits)
        self.counts["filtered"] += int((~mask).sum())
        if self.spec.kind != "synset_pairs":
            for role, column in self.roles.items():
                if role in NO_TEXTS:
                    continue
                there = _has_text(self._texts(block[column], column))
                if is_negative(role):
                    self.has[role][begin : begin + len(block)] = there
                else:
                    self.counts["empty"] += (lost := int((mask & ~there).sum()))
                    self.empty[role] += lost
                    mask &= there
        places = np.flatnonzero(mask)
        values = self._values(block.filter(pa.array(mask)), begin + places).to_pydict()
        texts = {role: column for role, column in values.items() if role not in NO_TEXTS}
        clean = _without(texts, self.barred)
        self.counts["barred"] += int((~clean).sum())
        for role in self.has if self.held else ():
            self.has[role][begin + places] &= _without({role: texts[role]}, self.held)
        seen = {role: column for role, column in texts.items() if not is_negative(role)}
        apart = _without(seen, self.held)
        self.counts["shared"] += int((clean & ~apart).sum())
        clean &= apart
        words = np.zeros(len(places), dtype=np.uint64)
        if self.held_out:
            drawn_by = texts["positive" if "positive" in texts else "text"]
            words = np.array([text_hash(text) for text in drawn_by], dtype=np.uint64)
        # Python's hash of a string is 64 bits wide and kept in it; no process hands it to another.
        keys = [hash(tuple(map(str, row))) for row in zip(*values.values(), strict=True)]
        return places[clean], np.array(keys, dtype=np.int64)[clean], words[clean]

    def _matching(
        self, column: pa.ChunkedArray, name: str, pattern: str, fits: dict[tuple[str, str], bool]
    ) -> Array:
        """Whether each value matches; each distinct one is matched once: there are few."""
        feature = self.features[name]
        if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
            return np.array([matches(str(value), pattern) for value in column.to_pylist()])
        encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        found = []
        for value in encoded.dictionary.to_pylist():
            if isinstance(feature, ClassLabel) and value is not None and value >= 0:
                value = feature.int2str(value)
            key = name, str(value)
            if key not in fits:
                fits[key] = matches(key[1], pattern)
            found.append(fits[key])
        return np.array(found, dtype=bool)[encoded.indices.to_numpy()]

    # ------------------------------------------------------------------------------- their values

    def _values(self, block: pa.Table, rows: Array) -> pa.Table:
        """Source columns as roles; ``rows`` are their numbers in the source, for errors."""
        if self.spec.kind == "synset_pairs":
            return block.select([*self.roles])
        make = {"label": self._labels, "score": self._scores}
        found = {}
        for role, column in self.roles.items():
            if role in make:
                found[role] = make[role](block[column], column, rows)
            else:
                found[role] = self._texts(block[column], column)
        return pa.table(found)

    def _texts(self, values: pa.ChunkedArray, column: str) -> pa.Array:
        kind = values.type
        if not is_text(kind):
            raise self.error(
                f"column {column!r} of {self.spec.named} holds {kind}, not text; name a column of "
                f"text"
            )
        return values.cast(pa.large_string()).combine_chunks()

    def _labels(self, values: pa.ChunkedArray, column: str, rows: Array) -> pa.Array:
        kind = values.type
        inner = kind.value_type if is_list(kind) else kind
        if pa.types.is_nested(inner) or pa.types.is_binary(inner):
            raise self.error(
                f"column {column!r} of {self.spec.named} holds {kind}, not labels: text, numbers, "
                f"or lists of them"
            )
        found = as_labels(values.combine_chunks(), self.features[column])
        self._no_nulls(found, column, rows, "label")
        return found

    def _scores(self, values: pa.ChunkedArray, column: str, rows: Array) -> pa.Array:
        try:
            found = values.cast(pa.float64()).combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            for row, value in zip(rows.tolist(), values.to_pylist(), strict=True):
                if not _is_number(value):
                    file, row = self.source.place(row)
                    raise self.error(
                        f"column {column!r} of {file} holds {value!r:.80} in row {row} (counted "
                        f"from 0), which is not a score; a score is a number"
                    ) from error
            raise self.error(f"column {column!r} of {self.spec.named}: {error}") from error
        finite = pc.if_else(pc.is_finite(found), found, pa.scalar(None, pa.float64()))
        self._no_nulls(finite, column, rows, "score")
        return found

    def _no_nulls(self, values: pa.Array, column: str, rows: Array, what: str) -> None:
        if values.null_count:
            row = int(rows[int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])])
            file, row = self.source.place(row)
            raise self.error(
                f"column {column!r} of {file} has no {what} in row {row} (counted from 0); give it "
                f"one, or drop such rows by `where`"
            )

    # ------------------------------------------------------------------------- what they become

    def _tables(self, order: Array) -> Iterator[pa.Table]:
        kind = self.spec.kind
        if kind == "synset_pairs":
            synsets = [row for block in self._blocks(order) for row in block.to_pylist()]
            pairs = similarity_pairs(synsets, self.spec.limit or SYNSET_PAIRS, self.seed)
            yield from _of_rows(
                {"query": one["sentence1"], "positive": one["sentence2"], "score": one["score"]}
                for one in pairs
            )
        elif kind == "paragraphs":
            yield from _of_rows(paragraphs(lambda: self._texts_in(order, "text")))
        elif kind == "long":
            yield from _of_rows(self._joined(order))
        else:
            yield from self._blocks(order)

    def _blocks(self, order: Array) -> Iterator[pa.Table]:
        batches = self.table.to_batches()
        starts = np.cumsum([0, *map(len, batches)])
        givers = self._givers(order)
        for begin in self._steps(range(0, len(order), self.step), "writing"):
            rows = order[begin : begin + self.step]
            block = self._values(_gathered(batches, starts, rows), rows)
            for role, of in givers.items():
                given = self._values(
                    _gathered(batches, starts, of[begin : begin + self.step]), rows
                )
                block = block.set_column(block.column_names.index(role), role, given[role])
            yield _without_nulls(block) if self.held_out else block

    def _givers(self, order: Array) -> dict[str, Array]:
        """For each negative that some rows lack: the rows whose negatives are used.

        A query meets all negatives of its batch anyway, so one of another row does no harm. Rows
        under test meet every document, so that held-out rows keep what they have.
        """
        if self.held_out:
            return {}
        found = {}
        draw = np.random.default_rng(self.seed)
        for role, has in self.has.items():
            there = has[order]
            if not there.any():
                raise self.error(
                    f"column {self.spec.columns[role]!r} of {self.spec.named} has no text for "
                    f"{role} in any row that is taken; leave {role} out of its columns"
                )
            if not there.all():
                found[role] = np.where(there, order, draw.choice(order[there], len(order)))
                self.filled[role] = int((~there).sum())
        return found

    def _texts_in(self, order: Array, role: str) -> Iterator[str]:
        for block in self._blocks(order):
            yield from block[role].to_pylist()

    def _joined(self, order: Array) -> Iterator[dict[str, str]]:
        """Positives joined into documents; each query asks for the one that holds its own."""
        drawn = random.Random(self.seed).sample(range(len(order)), len(order))
        again = order[np.array(drawn, dtype=np.int64)]
        rows = (row for block in self._blocks(again) for row in block.to_pylist())
        pages = (((place, row["query"]), row["positive"]) for place, row in enumerate(rows))
        for document in joined(pages, self.spec.characters):
            for _, query in document.offsets:
                yield {"query": query, "positive": document.text}

    def _steps(self, steps: range, what: str) -> Iterable[int]:
        disable = True if len(steps) < 2 else None  # None: where there is no terminal
        return tqdm(steps, desc=f"{self.name}: {what}", unit="block", disable=disable)


def _block_rows(table: pa.Table) -> int:
    mean = table.nbytes / max(1, len(table))
    return int(max(1, min(BLOCK_ROWS, BLOCK_BYTES / max(1.0, mean))))


def _gathered(batches: Sequence[pa.RecordBatch], starts: Array, rows: Array) -> pa.Table:
    """Rows of a table in any order.

    pyarrow's own ``take`` would join the whole table first: all of it in memory, and no more than
    2 GiB of text in a column.
    """
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    bounds = np.searchsorted(wanted, starts)
    parts = [
        batch.take(pa.array(wanted[low:high] - start))
        for batch, start, (low, high) in zip(batches, starts[:-1], pairwise(bounds), strict=True)
        if high > low
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.Table.from_batches(parts).combine_chunks().take(pa.array(back))


def _without_nulls(block: pa.Table) -> pa.Table:
    """Empty texts in the place of hard negatives that are missing."""
    for place, role in enumerate(block.column_names):
        if is_negative(role):
            block = block.set_column(place, role, pc.fill_null(block[role], ""))
    return block


def _has_text(values: pa.Array) -> Array:
    """Which texts are there and not blank, bool."""
    lengths = pc.binary_length(pc.utf8_trim_whitespace(values))
    found: Array = lengths.fill_null(0).to_numpy() > 0
    return found


def _without(texts: Mapping[str, Sequence[Any]], barred: Collection[int]) -> Array:
    """Which rows have no text whose hash is barred, bool."""
    clean = np.ones(len(next(iter(texts.values()))), dtype=bool)
    for column in texts.values() if barred else ():
        clean &= [not isinstance(text, str) or text_hash(text) not in barred for text in column]
    return clean


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def as_labels(values: pa.Array, feature: Any) -> pa.Array:
    """Labels as text, or as lists of texts: a ClassLabel's names, other values written out."""
    if is_list(values.type):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy()
        inner = as_labels(values.flatten(), getattr(feature, "feature", None))
        return pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]), inner)
    if isinstance(feature, ClassLabel):
        known = pc.if_else(pc.less(values, 0), pa.scalar(None, values.type), values)
        return pa.array(feature.names, pa.large_string()).take(known)
    return values.cast(pa.large_string())


def _of_rows(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Tables of rows that were made one by one."""
    block: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(block) == BLOCK_ROWS or size > BLOCK_BYTES:
            yield _typed(block)
            block, size = [], 0
    if block:
        yield _typed(block)


def _typed(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        [(role, pa.float64() if role == "score" else pa.large_string()) for role in rows[0]]
    )
    return pa.Table.from_pylist(rows, schema)


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


# ------------------------------------------------------------------------------------ paragraphs


def paragraphs(texts: Callable[[], Iterable[str]]) -> Iterator[dict[str, str]]:
    """The parts of texts that have several, under their text's number as label.

    A text of lines is parted at the ends of lines, one of a single line into two halves between
    sentences. Parts of fewer than :data:`LEAST_PART` characters go to the part before. A part that
    stands in several texts belongs to none.

    Args:
        texts: Gives the texts; it is called twice, so that they need not be held.
    """
    count = Counter(hash(part) for text in texts() for part in set(_parts(text)))
    for number, text in enumerate(texts()):
        own = [part for part in dict.fromkeys(_parts(text)) if count[hash(part)] == 1]
        if len(own) > 1:
            for part in own:
                yield {"text": part, "label": str(number)}


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
