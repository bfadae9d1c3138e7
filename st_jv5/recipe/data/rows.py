"""The rows of a data set on disk, memory mapped by every process that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset
from filelock import FileLock

from st_jv5.files import read_json, whole_file, write_json
from st_jv5.recipe.config import fingerprint
from st_jv5.roles import NO_TEXTS
from st_jv5.teacher.shard import HASH_BYTES, Array, first_of_each

CHUNK_ROWS = 10_000
"""Rows of a record batch on disk."""


class Rows:
    """A data set's rows in Arrow on disk, memory mapped: they take no memory of a process' own.

    ``rows.arrow`` has a column per role, its rows in the order of the recipe's seed, and
    ``ROLE.hashes`` the 16-byte hash of each text, by which the teacher store knows it. A text's
    number is ``row * len(roles) + place of its role``.

    Args:
        folder: What :func:`st_jv5.recipe.data.prepare.read_rows` made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Rows, (self.folder,)  # memory maps do not travel

    @cached_property
    def told(self) -> dict[str, Any]:
        """The data set's name, its source, and the numbers of rows read, dropped and used."""
        return read_json(self.folder / "rows.json")

    @property
    def name(self) -> str:
        """The data set's name in the recipe."""
        return str(self.told["name"])

    @cached_property
    def dataset(self) -> Dataset:
        """The rows with all roles, as a ``datasets`` data set."""
        return Dataset.from_file(str(self.folder / "rows.arrow"))

    @cached_property
    def roles(self) -> list[str]:
        """The roles that hold text."""
        return [role for role in self.dataset.column_names if role not in NO_TEXTS]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = self.dataset[row]
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dataset)

    def column(self, role: str) -> Iterator[Any]:
        """Every value of a role, in order."""
        for batch in self.dataset.data.to_batches():
            yield from batch.column(role).to_pylist()

    def hashes(self, role: str) -> Array:
        """Hash of each text of a role, uint8 ``(rows, 16)``, memory mapped."""
        return np.memmap(
            self.folder / f"{role}.hashes", np.uint8, "r", shape=(len(self), HASH_BYTES)
        )

    def all_hashes(self) -> Array:
        """Hash of each text by its number, uint8 ``(rows * roles, 16)``."""
        return np.stack([self.hashes(role) for role in self.roles], axis=1).reshape(-1, HASH_BYTES)

    @property
    def content(self) -> str:
        """A hash of all texts and their order."""
        digest = xxhash.xxh3_128()
        for role in self.roles:
            digest.update(self.hashes(role).data)
        return digest.hexdigest()

    def numbers(self, role: str) -> Array:
        """Numbers of a role's texts, int64 ``(rows,)``."""
        return np.arange(len(self)) * len(self.roles) + self.roles.index(role)

    def distinct(self, role: str | None = None) -> Array:
        """Numbers of the texts of a role (None: of all), the first of those that are equal."""
        if role is None:
            return first_of_each(self.all_hashes())[0]
        return self.numbers(role)[first_of_each(self.hashes(role))[0]]

    def texts(self, numbers: Iterable[int] | Array) -> list[str]:
        """Texts by their numbers."""
        width, columns = len(self.roles), self._columns
        return [
            columns[number % width][number // width].as_py()
            for number in np.asarray(numbers, dtype=np.int64).tolist()
        ]

    @cached_property
    def _columns(self) -> list[pa.ChunkedArray]:
        return [self.dataset.data.column(role) for role in self.roles]

    @cached_property
    def labels(self) -> frozenset[str]:
        """Every label of labelled rows; one row may have several."""
        column = self.dataset.data.column("label")
        if is_list(column.type):
            column = pc.list_flatten(column)
        return frozenset(pc.unique(column).to_pylist())

    def first(self, count: int, folder: Path) -> Rows:
        """The first rows, as rows of their own in another folder."""
        folder.mkdir(parents=True)
        write_tables(folder / "rows.arrow", [self.dataset.data.table.slice(0, count)])
        for role in self.roles:
            self.hashes(role)[:count].tofile(folder / f"{role}.hashes")
        write_json(folder / "rows.json", self.told)
        return Rows(folder)

    @property
    def bytes(self) -> int:
        """Bytes on disk, with all files beside the rows."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def beside(
        self, what: str, key: Any, make: Callable[[], Iterable[Mapping[str, Array]]]
    ) -> Dataset:
        """A table that is made of the rows, written beside them by the first process that asks.

        Args:
            what: Name of the table; an older one of this name and another key is removed.
            key: All that decides it beside the rows, as JSON.
            make: Gives its columns, some rows at a time: int64 or float64, a row each of any shape.
        """
        path = self.folder / f"{what}-{fingerprint(key)}.arrow"
        with FileLock(self.folder / f"{what}.lock"):
            if not path.exists():
                for old in self.folder.glob(f"{what}-????????????????.arrow"):
                    old.unlink(missing_ok=True)
                with whole_file(path) as temporary:
                    write_tables(temporary, (_as_table(columns) for columns in make()))
        return Dataset.from_file(str(path))


class Texts(Sequence[str]):
    """The distinct texts of some roles of some data sets, read from the disk when they are asked.

    Args:
        columns: Rows and a role of theirs; one that comes twice counts once.
    """

    def __init__(self, columns: Iterable[tuple[Rows, str]]) -> None:
        self.columns = list(dict.fromkeys(columns))
        every = [rows.hashes(role) for rows, role in self.columns]
        whole = np.concatenate(every) if every else np.zeros((0, HASH_BYTES), np.uint8)
        self._picks = first_of_each(whole)[0]
        self.hashes = whole[self._picks]
        """Hashes of the texts, as :func:`~st_jv5.teacher.shard.hash_texts` returns them."""
        self._starts = np.cumsum([0, *map(len, every)])

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        pick = self._picks[index]
        part = int(np.searchsorted(self._starts, pick, side="right")) - 1
        rows, role = self.columns[part]
        row = int(pick - self._starts[part])
        return rows.texts([row * len(rows.roles) + rows.roles.index(role)])[0]


def is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _as_table(columns: Mapping[str, Array]) -> pa.Table:
    """Arrays of any shape as columns of lists of fixed sizes."""
    found = {}
    for name, values in columns.items():
        column = pa.array(values.reshape(-1))
        for width in reversed(values.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, width)
        found[name] = column
    return pa.table(found)


def write_tables(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write a stream of record batches, which can be memory mapped; gives the number of rows."""
    rows, writer = 0, None
    with pa.OSFile(str(path), "wb") as sink:
        for table in tables:
            writer = writer or pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table, max_chunksize=CHUNK_ROWS)
            rows += len(table)
        if writer is not None:
            writer.close()
    return rows
