"""A corpus that need not fit in memory: files, or a data set on the Hub, read in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_dataset

from st_jv5.texts import (
    KINDS,
    READ_ROWS,
    WANTED,
    Table,
    chosen_column,
    ending,
    first_broken,
    read_tables,
)

INT64 = range(-(2**63), 2**63)
SAMPLE_TEXTS = 1024
"""A corpus' sample has at least so many texts, where it has as many, and fewer than twice that."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a corpus, one after the other."""

    first: int
    ids: list[Any]
    texts: list[str]


@dataclass(frozen=True)
class Summary:
    """What one pass over a corpus finds."""

    rows: int
    sha256: str
    """Hash of all ids and texts."""
    sample: list[str]
    """Texts from all over the corpus, always the same ones."""


class Corpus:
    """Texts and their ids from .parquet, .jsonl, .json, .csv or .txt files, or from the Hub.

    Args:
        source: A file, several files of one kind, or the id of a data set on the Hub.
        column: The column of texts; it may be left out if there is only one column.
        id_column: The column of ids, numbers or strings. None: the column ``id`` if there is one,
            else the number of the row.
        split: Split of a data set on the Hub.
        config: Configuration of a data set on the Hub.
        revision: Branch, tag or commit of a data set on the Hub.

    Raises:
        ValueError: A file or column is missing, or the files are of several kinds.

    Example:
        >>> corpus = Corpus("training/data/wordnet.parquet", "gloss", id_column="synset")
        >>> next(corpus.blocks(1)).texts
        ['any large dark enclosed space']
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        column: str | None = None,
        *,
        id_column: str | None = None,
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
    ) -> None:
        sources = [source] if isinstance(source, str | Path) else source
        self.files = [str(path) for path in sources]
        if not self.files:
            raise ValueError("a corpus needs at least one file")
        self.hub = len(self.files) == 1 and _is_hub_id(self.files[0])
        self.split, self.config, self.revision = split, config, revision
        if not self.hub:
            for path in map(Path, self.files):
                if not path.is_file():
                    raise ValueError(f"no file {path}")
                if not ending(path):
                    raise ValueError(f"{path} {WANTED}")
            if len(kinds := {KINDS[ending(path)] for path in self.files}) > 1:
                raise ValueError(
                    f"files of several kinds in one corpus: {', '.join(sorted(kinds))}"
                )
        self.column, self.id_column = self._columns(column, id_column)

    @property
    def name(self) -> str:
        """How messages name the corpus."""
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} and others"

    def _tables(self, columns: Sequence[str] | None) -> Iterator[tuple[str, int, Table]]:
        """File, number of its first row in the file, and rows."""
        if self.hub:
            stream = load_dataset(
                self.files[0],
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=True,
            )
            for number, table in enumerate(stream.with_format("arrow").iter(READ_ROWS)):
                chosen = table if columns is None else table.select(list(columns))
                yield self.files[0], number * READ_ROWS, chosen.to_pydict()
            return
        for path in self.files:
            row = 0
            for table in read_tables(path, columns):
                yield path, row, table
                row += max(map(len, table.values()), default=0)

    def _columns(self, column: str | None, id_column: str | None) -> tuple[str, str | None]:
        _, _, first = next(self._tables(None), ("", 0, {}))
        if not first:
            raise ValueError(f"{self.name} has no row")
        known = list(first)
        column = chosen_column(self.name, known, column)
        if id_column is None and "id" in known and column != "id":
            id_column = "id"
        if id_column is not None and id_column not in known:
            raise ValueError(f"{self.name} has no column {id_column!r}; it has: {', '.join(known)}")
        return column, id_column

    def blocks(self, rows: int) -> Iterator[Rows]:
        """The corpus in blocks of so many rows; the last may have fewer.

        Raises:
            ValueError: A row whose text or id is missing or cannot be one; names file and row.
        """
        first = 0
        ids: list[Any] = []
        texts: list[str] = []
        for more_ids, more_texts in self._checked():
            texts += more_texts
            ids += more_ids or range(first + len(ids), first + len(texts))
            while len(texts) >= rows:
                yield Rows(first, ids[:rows], texts[:rows])
                first, ids, texts = first + rows, ids[rows:], texts[rows:]
        if texts:
            yield Rows(first, ids, texts)

    def _checked(self) -> Iterator[tuple[list[Any], list[str]]]:
        """Ids (none without a column of them) and texts of some rows."""
        kind: type | None = None
        columns = [self.column] + ([self.id_column] if self.id_column is not None else [])
        for path, first, table in self._tables(columns):
            texts, ids = table[self.column], []
            for row, text in enumerate(texts, start=first):
                if not isinstance(text, str):
                    raise self._refused(path, row, self.column, "a text", text)
            if (index := first_broken(texts)) is not None:
                raise self._refused(path, first + index, self.column, "whole Unicode", texts[index])
            if self.id_column is not None:
                ids = table[self.id_column]
                kind = kind or type(ids[0])
                self._check_ids(path, first, ids, kind)
            yield ids, texts

    def _check_ids(self, path: str, first: int, ids: list[Any], kind: type) -> None:
        assert self.id_column is not None
        for row, row_id in enumerate(ids, start=first):
            if not _can_be_id(row_id):
                wanted = "a text, not blank and without NUL, or an integer of 64 bits"
            elif type(row_id) is not kind:
                wanted = f"{'a text' if kind is str else 'a number'} as in the rows before it"
            else:
                continue
            raise self._refused(path, row, self.id_column, wanted, row_id)
        if kind is str and (index := first_broken(ids)) is not None:
            raise self._refused(path, first + index, self.id_column, "whole Unicode", ids[index])

    def _refused(self, path: str, row: int, column: str, wanted: str, value: object) -> ValueError:
        return ValueError(
            f"row {row} of {path}: {column!r} must be {wanted}, not {value!r:.200}; fill it, or "
            f"leave the row out"
        )

    def summary(self) -> Summary:
        """Read the corpus once: how many rows, whether each has a text, a hash, and a sample."""
        digest = hashlib.sha256()
        count, step = 0, 1
        sample: list[str] = []
        for block in self.blocks(READ_ROWS):
            for one, text in zip(block.ids, block.texts, strict=True):
                digest.update(f"{one!r}\0{len(text)}\0".encode())
                digest.update(text.encode())
            first = -(-block.first // step) * step - block.first
            sample += block.texts[first::step]
            while len(sample) >= 2 * SAMPLE_TEXTS:
                sample, step = sample[::2], step * 2
            count += len(block.texts)
        return Summary(count, digest.hexdigest(), sample)

    def _at(self, rows: Sequence[int]) -> dict[int, tuple[Any, str]]:
        """Id and text of some rows, by row; those before the last of them are read."""
        wanted = set(rows)
        texts: dict[int, tuple[Any, str]] = {}
        for block in self.blocks(READ_ROWS):
            for row in wanted & set(range(block.first, block.first + len(block.texts))):
                texts[row] = block.ids[row - block.first], block.texts[row - block.first]
            if len(texts) == len(wanted):
                break
        return texts

    def texts_of(self, rows: dict[int, Any], sha256: str) -> dict[int, str]:
        """The texts of some rows, by row, of the corpus that has this hash.

        Args:
            rows: Row -> id.
            sha256: What :meth:`summary` gave. It is compared for files, and of a data set on the
                Hub, which would have to be fetched whole, the ids of these rows alone.

        Raises:
            ValueError: The corpus is another than it was.
        """
        found = self._at(list(rows))
        same = all(row in found and found[row][0] == one for row, one in rows.items())
        if not same or (not self.hub and self.summary().sha256 != sha256):
            raise ValueError(f"{self.name} has changed since it was encoded")
        return {row: text for row, (_, text) in found.items()}

    def describe(self) -> dict[str, Any]:
        """What opens it again: ``Corpus(**corpus.describe())``."""
        told: dict[str, Any] = {"source": self.files[0] if self.hub else self.files}
        told |= {"column": self.column, "id_column": self.id_column}
        if self.hub:
            told |= {"split": self.split, "config": self.config, "revision": self.revision}
        return told


def _can_be_id(one: object) -> bool:
    if type(one) is str:
        return one != "" and "\0" not in one
    return type(one) is int and one in INT64


def _is_hub_id(name: str) -> bool:
    return (
        not Path(name).exists()
        and not ending(name)
        and name.count("/") <= 1
        and not name.startswith((".", "/", "~"))
    )
