"""A corpus that need not fit in memory: files, or a data set of the Hub, read in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import load_dataset

from st_jv5.texts import KINDS

READ_ROWS = 4096
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
    """What one pass over a corpus tells."""

    rows: int
    sha256: str
    """Of all ids and texts."""
    sample: list[str]
    """Texts from all over the corpus, always the same ones."""


class Corpus:
    """Texts and their ids from .parquet, .jsonl, .json, .csv or .txt files, or from the Hub.

    Args:
        source: A file, several files of one kind, or the id of a data set on the Hub.
        column: Of the texts; may be left out where there is only one.
        id_column: Of the ids, numbers or strings; None: ``id`` where there is such a column, else
            the number of the row.
        split: Of a data set on the Hub.
        config: Of a data set on the Hub: its configuration.
        revision: Of a data set on the Hub.

    Raises:
        ValueError: No such file or column, several kinds of files.

    Example:
        >>> corpus = Corpus("training/data/wordnet.parquet", "gloss", id_column="synset")
        >>> next(corpus.blocks(1)).texts
        ['any large dark enclosed space']
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        column: str | None = None,
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
                if path.suffix not in KINDS:
                    raise ValueError(f"{path} must end with one of {', '.join(KINDS)}")
            if len(kinds := {KINDS[Path(path).suffix] for path in self.files}) > 1:
                raise ValueError(
                    f"files of several kinds in one corpus: {', '.join(sorted(kinds))}"
                )
        self.column, self.id_column = self._columns(column, id_column)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} and others"

    def _open(self) -> Any:
        if self.hub:
            return load_dataset(
                self.files[0],
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=True,
            )
        kind = KINDS[Path(self.files[0]).suffix]
        return load_dataset(kind, data_files=self.files, split="train", streaming=True)

    def _columns(self, column: str | None, id_column: str | None) -> tuple[str, str | None]:
        first = next(iter(self._open()), None)
        if first is None:
            raise ValueError(f"{self.name} has no row")
        known = list(first)
        if column is None and len(known) == 1:
            column = known[0]
        if column is None or column not in known:
            problem = f"no column {column!r}" if column else f"{len(known)} columns; name one"
            raise ValueError(f"{self.name} has {problem}; it has: {', '.join(known)}")
        if id_column is None and "id" in known and column != "id":
            id_column = "id"
        if id_column is not None and id_column not in known:
            raise ValueError(f"{self.name} has no column {id_column!r}; it has: {', '.join(known)}")
        return column, id_column

    def blocks(self, rows: int) -> Iterator[Rows]:
        """The corpus in blocks of so many rows; the last may have fewer.

        Raises:
            ValueError: A row without a text or an id; names it.
        """
        first = 0
        for table in self._open().with_format("arrow").iter(batch_size=rows):
            texts = self._column(table, self.column, first, (str,))
            ids: list[Any] = list(range(first, first + len(texts)))
            if self.id_column is not None:
                ids = self._column(table, self.id_column, first, (str, int))
            yield Rows(first, ids, texts)
            first += len(texts)

    def _column(
        self, table: pa.Table, column: str, first: int, types: tuple[type, ...]
    ) -> list[Any]:
        values: list[Any] = table[column].to_pylist()
        if {type(value) for value in values} <= {types[0]} or all(
            isinstance(value, types) for value in values
        ):
            return values
        for row, value in enumerate(values, start=first):
            if not isinstance(value, types):
                kinds = " or ".join(kind.__name__ for kind in types)
                raise ValueError(
                    f"row {row} of {self.name}: {column!r} must be {kinds}, not {value!r}; fill it "
                    f"or leave the row out"
                )
        raise AssertionError

    def summary(self) -> Summary:
        """Read the corpus once: how many rows, whether each has a text, a hash, and a sample."""
        digest = hashlib.sha256()
        count, step = 0, 1
        sample: list[str] = []
        for block in self.blocks(READ_ROWS):
            for one, text in zip(block.ids, block.texts, strict=True):
                digest.update(f"{one!r}\0{len(text)}\0".encode())
                digest.update(text.encode(errors="surrogatepass"))
            first = -(-block.first // step) * step - block.first
            sample += block.texts[first::step]
            while len(sample) >= 2 * SAMPLE_TEXTS:
                sample, step = sample[::2], step * 2
            count += len(block.texts)
        return Summary(count, digest.hexdigest(), sample)

    def texts_at(self, rows: Sequence[int]) -> dict[int, str]:
        """The texts of some rows, by row; those before the last of them are read."""
        wanted = set(rows)
        found: dict[int, str] = {}
        for block in self.blocks(READ_ROWS):
            span = range(block.first, block.first + len(block.texts))
            found |= {row: block.texts[row - block.first] for row in wanted if row in span}
            if len(found) == len(wanted):
                break
        return found

    def describe(self) -> dict[str, Any]:
        """What opens it again: ``Corpus(**corpus.describe())``."""
        told: dict[str, Any] = {"source": self.files[0] if self.hub else self.files}
        told |= {"column": self.column, "id_column": self.id_column}
        if self.hub:
            told |= {"split": self.split, "config": self.config, "revision": self.revision}
        return told


def _is_hub_id(name: str) -> bool:
    return (
        not Path(name).exists()
        and Path(name).suffix not in KINDS
        and name.count("/") <= 1
        and not name.startswith((".", "/", "~"))
    )
