"""A data set's source as one memory-mapped table: files of your own, or a set of the Hub."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_dataset
from datasets.exceptions import DatasetsError

from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data.rows import is_list, write_tables
from st_jv5.recipe.strict import RecipeError
from st_jv5.roles import NO_TEXTS, is_negative, kind_of, passage, roles_of
from st_jv5.teacher.shard import Array
from st_jv5.texts import WANTED, Table, ending, read_tables

BATCH_ROWS = 10_000
"""Rows of a parquet file that are read together."""
Columns = Mapping[str, list[Any] | pa.Array]
"""Some rows: column -> values."""


def files_of(name: str, spec: DataSet) -> list[Path]:
    """The files of a data set on this disk, in the order in which they are read.

    Raises:
        RecipeError: One that is not there or of no kind that is read; a folder or pattern without
            any; parquet beside other kinds.
    """
    found: list[Path] = []
    for path in spec.paths:
        place = spec.place(path)
        if place.is_dir():
            inside = sorted(place.iterdir())
            own = [one for one in inside if one.is_file() and ending(one) and one.name[0] != "."]
            nothing = f"the folder {place} has no file to read; a file {WANTED}"
        elif place.exists() or not set("*?[") & set(path):
            own = [place] if place.is_file() else []
            nothing = (
                f"no file {place}; paths are relative to the recipe's folder, or to data_folder"
            )
        else:
            folder = glob.escape(spec.folder)
            pattern = str(Path(folder, Path(path).expanduser()))
            own = sorted(Path(one) for one in glob.glob(pattern, recursive=True))
            own = [one for one in own if one.is_file()]
            nothing = f"no file matches {place}"
        if not own:
            raise RecipeError(f"data_sets.{name}.path: {nothing}")
        found += own
    for file in found:
        if not ending(file):
            raise RecipeError(f"data_sets.{name}.path: {file} {WANTED}")
    found = list(dict.fromkeys(found))
    if len({ending(file) == ".parquet" for file in found}) > 1:
        raise RecipeError(
            f"data_sets.{name}.path: parquet beside files of other kinds: "
            f"{', '.join(file.name for file in found[:9])}; make two data sets of them"
        )
    return found


def first_table(name: str, spec: DataSet) -> tuple[Path, Table]:
    """The first rows of a data set's first file, with all columns.

    Raises:
        RecipeError: It has none, or cannot be read.
    """
    file = files_of(name, spec)[0]
    try:
        table = next(read_tables(file), None)
    except ValueError as error:
        raise RecipeError(f"data_sets.{name}: {error}") from error
    if not table:
        raise RecipeError(f"data_sets.{name}: {file} is empty: it has no row")
    return file, table


def with_columns(name: str, spec: DataSet) -> DataSet:
    """A data set whose columns and kind are said, by the first rows of its first file.

    Args:
        name: Of the data set in the recipe.
        spec: Its settings, without columns.

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


@dataclass(frozen=True)
class Source:
    """All rows of a data set's source, unchanged."""

    table: pa.Table
    """Memory mapped; the columns that are asked for."""
    features: Mapping[str, Any]
    """Column -> what ``datasets`` knows of it."""
    roles: dict[str, str]
    """Role -> its column of the table."""
    starts: Mapping[int, str]
    """Number of a file's first row -> the file, in order."""

    def place(self, row: int) -> tuple[str, int]:
        """File and row in it (counted from 0) of a row."""
        first = max(start for start in self.starts if start <= row)
        return self.starts[first], row - first


def open_source(name: str, spec: DataSet, cache: Path) -> Source:
    """Open a data set's source.

    Text files become an Arrow file in the cache, with every value as text, as it stands in the
    file; parquet files one of the columns that are asked for. A set of the Hub stays where
    ``datasets`` keeps it, unless it has columns of lists to spread.

    Args:
        name: Name of the data set in the recipe.
        spec: Settings of the data set.
        cache: A folder, which is made.

    Raises:
        RecipeError: Names the data set and the file, and of what cannot be read line or row.
    """
    try:
        if spec.is_local:
            return _Copy(name, spec, cache).of_files(files_of(name, spec))
        whole = load_dataset(
            spec.path, spec.subset or None, split=spec.split, revision=spec.revision or None
        )
        return _of_dataset(name, spec, whole, cache)
    except RecipeError:
        raise
    except (OSError, ValueError, StopIteration, DatasetsError, pa.ArrowException) as error:
        why = str(error.__cause__ or error) or "it is empty"  # StopIteration says nothing
        if spec.is_local:  # it names its file
            raise RecipeError(f"data_sets.{name}: {why}") from error
        raise RecipeError(f"data_sets.{name}: {spec.named} cannot be read: {why}") from error


def _of_dataset(name: str, spec: DataSet, whole: Dataset, cache: Path) -> Source:
    wanted = _wanted(spec, whole.column_names)
    _check_columns(name, spec.named, wanted, whole.column_names)
    table = whole.select_columns(wanted).data.table
    features = whole.features
    roles = _own_roles(spec, wanted)
    texts = {column for role, column in roles.items() if role not in NO_TEXTS}
    if spec.kind == "synset_pairs" or not any(is_list(table[one].type) for one in texts):
        return Source(table, features, roles, {0: spec.named})
    return _Copy(name, spec, cache).of_dataset(whole, table)


def _wanted(spec: DataSet, known: Sequence[str]) -> list[str]:
    """The columns that are read: those of the roles and of ``where``; all of synsets."""
    if spec.kind == "synset_pairs":
        return list(known)
    return list(dict.fromkeys([*spec.columns.values(), *spec.where]))


def _own_roles(spec: DataSet, wanted: Sequence[str]) -> dict[str, str]:
    return spec.columns if spec.kind != "synset_pairs" else {column: column for column in wanted}


def _check_columns(name: str, file: str, wanted: Iterable[str], known: Sequence[str]) -> None:
    for column in wanted:
        if column not in known:
            raise RecipeError(
                f"data_sets.{name}: {file} has no column {column!r}; it has {', '.join(known)}"
            )


class _Copy:
    """Writes what is read of files as one Arrow file, lists spread, a batch at a time."""

    def __init__(self, name: str, spec: DataSet, cache: Path) -> None:
        self.name, self.spec, self.cache = name, spec, cache
        self.starts: dict[int, str] = {}
        self.rows, self.read = 0, 0
        self.file = spec.named

    def of_files(self, files: Sequence[Path]) -> Source:
        """The rows of files, one after the other."""
        if ending(files[0]) != ".parquet":
            return self._written(batch for file in files for batch in self._lines(file))
        schemas = [self._schema(file) for file in files]
        plain = [schema.remove_metadata() for schema in schemas]
        whole = pa.unify_schemas(plain, promote_options="permissive")
        wanted = _wanted(self.spec, whole.names)
        for file, schema in zip(files, plain, strict=True):
            needed = [c for c in wanted if c in schema.names or not self._may_lack(c, whole.names)]
            _check_columns(self.name, str(file), needed, schema.names)
        types = {column: whole.field(column).type for column in wanted}
        batches = (batch for file in files for batch in self._batches(file, types))
        return self._written(batches, Features.from_arrow_schema(schemas[0]))

    def _schema(self, file: Path) -> pa.Schema:
        try:
            return pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise RecipeError(
                f"data_sets.{self.name}: {file} cannot be read as parquet: {error}"
            ) from error

    def of_dataset(self, dataset: Dataset, table: pa.Table) -> Source:
        """The rows of a set that ``datasets`` has read."""
        self._begin(self.spec.named)
        batches = (self._spread(_columns(batch)) for batch in table.to_batches(BATCH_ROWS))
        return self._written(batches, dataset.features)

    def _begin(self, file: str) -> None:
        self.file, self.read = file, 0
        self.starts[self.rows] = file

    def _lines(self, file: Path) -> Iterator[pa.Table]:
        self._begin(str(file))
        seen: dict[str, None] = {}
        for table in filter(None, read_tables(file)):
            seen |= dict.fromkeys(table)
            nothing = [None] * len(next(iter(table.values())))
            wanted = _wanted(self.spec, list(table))
            yield self._spread({column: table.get(column, nothing) for column in wanted})
        if not seen:
            raise RecipeError(f"data_sets.{self.name}: {file} is empty: it has no row")
        # Another file may have the negatives that this one lacks.
        several = len(self.spec.paths) > 1 or self.spec.place(self.spec.paths[0]) != file
        wanted = _wanted(self.spec, [*seen])
        if several:
            wanted = [c for c in wanted if c in seen or not self._may_lack(c, [c])]
        _check_columns(self.name, str(file), wanted, [*seen])

    def _may_lack(self, column: str, known: Sequence[str]) -> bool:
        """Whether a file may be without a column: one of negatives, that another file has."""
        roles = [role for role, of in self.spec.columns.items() if of == column]
        negative = bool(roles) and all(map(is_negative, roles))
        return negative and column in known and column not in self.spec.where

    def _batches(self, file: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
        self._begin(str(file))
        with pq.ParquetFile(file) as parquet:
            own = [column for column in types if column in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(BATCH_ROWS, columns=own):
                found, nothing = _columns(batch), pa.nulls(batch.num_rows)
                yield self._spread({c: found.get(c, nothing).cast(k) for c, k in types.items()})

    def _written(
        self, batches: Iterable[pa.Table], features: Mapping[str, Any] | None = None
    ) -> Source:
        self.cache.mkdir(parents=True)
        path = self.cache / "source.arrow"
        if not write_tables(path, self._alike(batches)):
            raise RecipeError(f"data_sets.{self.name}: {self.spec.named} is empty: it has no row")
        dataset = Dataset.from_file(str(path))
        known = {**dataset.features, **(features or {})}
        roles = _own_roles(self.spec, dataset.column_names)
        roles = {role: self._column(role, column) for role, column in roles.items()}
        return Source(dataset.data.table, known, roles, self.starts)

    def _alike(self, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Batches with the types of the first."""
        schema = None
        for batch in batches:
            schema = schema or batch.schema
            for field in schema:
                if is_list(batch[field.name].type) != is_list(field.type):
                    raise RecipeError(
                        f"data_sets.{self.name}: column {field.name!r} of {self.file} holds a list "
                        f"in some rows and not in others; make it one or the other"
                    )
            yield batch.select(schema.names).cast(schema)

    # ----------------------------------------------------------------------------- a batch's values

    def _shared(self, role: str, column: str) -> list[str]:
        """The negatives that read one column."""
        return [r for r, of in self.spec.columns.items() if of == column and is_negative(r)]

    def _column(self, role: str, column: str) -> str:
        """The column of a role; of negatives that read one list each has its own."""
        shared = self._shared(role, column)
        alone = role not in shared or len(shared) == 1
        return column if alone else f"{column}[{shared.index(role)}]"

    def _spread(self, batch: Columns) -> pa.Table:
        """Texts in the place of lists: a row of each positive, a column of each negative."""
        count = len(next(iter(batch.values())))
        if self.spec.kind == "synset_pairs":
            found = {column: _as_text(values) for column, values in batch.items()}
        else:
            found = self._spread_roles(batch, count)
        table = pa.table(found)
        self.rows += len(table)
        self.read += count
        return table

    def _spread_roles(self, batch: Columns, count: int) -> dict[str, pa.Array]:
        found = {column: _as_text(batch[column]) for column in self.spec.where}
        again: Array | None = None
        for role, column in self.spec.columns.items():
            values, name = batch[column], self._column(role, column)
            if role in NO_TEXTS:
                found[column] = (
                    self._labels(column, values) if role == "label" else _as_text(values)
                )
            elif not _has_lists(values):
                first = name == column or name.endswith("[0]")
                found[name] = self._texts(column, values if first else [None] * count)
            elif is_negative(role):
                place = self._shared(role, column).index(role)
                rows = self._lists(column, values)
                own = [row[place] if place < len(row) else None for row in rows]
                found[name] = pa.array(own, pa.large_string())
            elif role == "positive" and self.spec.kind == "pairs":
                rows = [row or [None] for row in self._lists(column, values)]
                again = np.repeat(np.arange(count), [*map(len, rows)])
                positives = pa.array([text for row in rows for text in row], pa.large_string())
            else:
                value = next(value for value in _as_list(values) if value is not None)
                raise self._error(column, value, None, "not text; name a column of text")
        if again is None:
            return found
        found = {name: array.take(pa.array(again)) for name, array in found.items()}
        return {**found, self.spec.columns["positive"]: positives}

    def _error(self, column: str, value: Any, row: int | None, why: str) -> RecipeError:
        at = "" if row is None else f" in row {self.read + row} (counted from 0)"
        holds = value if isinstance(value, pa.DataType) else f"{value!r:.60}"
        return RecipeError(
            f"data_sets.{self.name}: column {column!r} of {self.file} holds {holds}{at}, {why}"
        )

    def _texts(self, column: str, values: list[Any] | pa.Array) -> pa.Array:
        if not isinstance(values, list):
            if not is_text(values.type):
                raise self._error(column, values.type, None, "not text; name a column of text")
            return values.cast(pa.large_string())
        for row, value in enumerate(values):
            if value is not None and type(value) is not str:
                raise self._error(column, value, row, "not text; put it in quotes")
        return pa.array(values, pa.large_string())

    def _lists(self, column: str, values: list[Any] | pa.Array) -> list[list[str | None]]:
        """The texts of each row's list, empty ones left out."""
        found = []
        for row, value in enumerate(_as_list(values)):
            own: list[str | None] = []
            for one in value if isinstance(value, list) else [value]:
                text = passage(one)
                if text is None:
                    raise self._error(column, one, row, "not a text, nor a passage with a text")
                if text.strip():
                    own.append(text)
            found.append(own)
        return found

    def _labels(self, column: str, values: list[Any] | pa.Array) -> pa.Array:
        if not isinstance(values, list):
            return values
        for row, value in enumerate(values):
            if isinstance(value, dict):
                raise self._error(
                    column, value, row, "not a label: text, a number, or a list of them"
                )
        there = [value for value in values if value is not None]
        if not any(isinstance(value, list) for value in there):
            return _as_text(values)
        for row, value in enumerate(values):
            if value is not None and not isinstance(value, list):
                raise self._error(column, value, row, "and lists in other rows")
        own = [value and [None if v is None else str(v) for v in value] for value in values]
        return pa.array(own, pa.large_list(pa.large_string()))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column can hold texts: nulls are none."""
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind)
                or types.is_string_view(kind) or types.is_null(kind))  # fmt: skip


def _columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    found = dict(zip(batch.schema.names, batch.columns, strict=True))
    return {c: one.dictionary_decode() if pa.types.is_dictionary(one.type) else one
            for c, one in found.items()}  # fmt: skip


def _as_list(values: list[Any] | pa.Array) -> list[Any]:
    return values if isinstance(values, list) else values.to_pylist()


def _as_text(values: list[Any] | pa.Array) -> pa.Array:
    """What a file of text has, written out; Arrow's own as it is."""
    if not isinstance(values, list):
        return values
    return pa.array([None if v is None else str(v) for v in values], pa.large_string())


def _has_lists(values: list[Any] | pa.Array) -> bool:
    if isinstance(values, list):
        return any(isinstance(value, list | dict) for value in values)
    return bool(pa.types.is_nested(values.type))
