"""Rows and texts from a file, as they stand there: no type is guessed, no name is a pattern."""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {".txt": "text", ".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}

READ_ROWS = 4096
"""Rows that are read together."""

Table = dict[str, list[Any]]
"""Some rows: column -> its values. A row that lacks a column has None there."""


def read_tables(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Table]:
    """A file's rows, :data:`READ_ROWS` at a time, in memory that does not grow (but of ``.json``).

    Values are as in the file: those of .csv are all texts, ``NA`` and ``007`` too. A .txt has a
    column ``text``, a row a line; a byte order mark is no part of a text.

    Args:
        path: A .txt, .parquet, .jsonl, .json or .csv file.
        columns: Those to read; None reads all.

    Raises:
        ValueError: No such file, or one that is not what its name says; names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    if path.suffix not in KINDS:
        raise ValueError(f"{path} must end with one of {', '.join(KINDS)}")
    if path.suffix == ".parquet":
        yield from _read_parquet(path, columns)
        return
    rows = READERS[path.suffix](path)
    while chunk := list(islice(rows, READ_ROWS)):
        known = columns or list(dict.fromkeys(name for row in chunk for name in row))
        yield {name: [row.get(name) for row in chunk] for name in known}


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Table]:
    try:
        with pq.ParquetFile(path) as file:
            chosen = [n for n in file.schema_arrow.names if columns is None or n in columns]
            for batch in file.iter_batches(READ_ROWS, columns=chosen):
                table: Table = {name: batch[name].to_pylist() for name in chosen}
                missing = [n for n in columns or () if n not in table]
                yield table | {name: [None] * batch.num_rows for name in missing}
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has a text that is not UTF-8: {error}") from error


def _lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """Lines with their ends; an error names the row that is no UTF-8."""
    row = 0
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            for line in file:
                yield line
                row += 1
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(
                f"{path} is not UTF-8: byte 0x{byte:02x} at line {row + 1} or soon after it; save "
                f"the file as UTF-8"
            ) from error


def _read_text(path: Path) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        yield {"text": line.removesuffix("\n")}


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # 128 KB are less than a long document
    reader = csv.reader(_lines(path, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path} has two columns of one name: {', '.join(header)}")
        for row, values in enumerate(filter(None, reader)):
            if len(values) != len(header):
                raise ValueError(
                    f"row {row} of {path} (line {reader.line_num}) has {len(values)} fields, the "
                    f"header {len(header)}; put quotes around a text that has commas or lines"
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.isspace():
            yield _object(path, f"line {number}", line)


def _object(path: Path, place: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, {place}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}, {place}: a row must be an object, not {line.strip()[:80]!r}")
    return found


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    """One list of objects; or, under this name too, an object a line."""
    if not next((line for line in _lines(path) if not line.isspace()), "").lstrip().startswith("["):
        yield from _read_jsonl(path)
        return
    try:
        rows = json.loads("".join(_lines(path)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    for row, found in enumerate(rows):
        if not isinstance(found, dict):
            raise ValueError(f"row {row} of {path} must be an object, not {str(found)[:80]!r}")
        yield found


READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    """The texts of a file: lines of .txt, or a column of .parquet, .jsonl, .json or .csv.

    Args:
        path: The file.
        column: Needed where the file has several columns. Rows without a text are left out: null,
            or an empty field of .csv.

    Example:
        >>> read_texts("training/data/wordnet.parquet", "gloss")[0]
        'any large dark enclosed space'
    """
    texts: list[str] = []
    rows = 0
    for table in read_tables(path):
        name = chosen_column(path, list(table), column)
        for text in table[name]:
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"column {name!r} of {path} must hold texts, not {text!r} (row {rows})"
                )
            rows += 1
            if text is not None and (text or Path(path).suffix != ".csv"):
                texts.append(text)
    if not texts:
        raise ValueError(f"{path} has no text")
    return texts


def chosen_column(name: str | Path, known: Sequence[str], column: str | None) -> str:
    """The column of the texts: the one that was asked for, or the only one."""
    if column is None and len(known) == 1:
        return known[0]
    if column is None or column not in known:
        problem = f"no column {column!r}" if column else f"{len(known)} columns; name one"
        raise ValueError(f"{name} has {problem}; it has: {', '.join(known)}")
    return column


def first_broken(texts: Sequence[str]) -> int | None:
    """Index of the first text with half a surrogate pair, which no encoding can write."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        for index, text in enumerate(texts):
            if any("\ud800" <= character <= "\udfff" for character in text):
                return index
    return None


def check_texts(texts: Sequence[object], where: str = "") -> None:
    """An error for the first that is no text, or that has half a surrogate pair.

    Args:
        texts: A list, or what was taken for one.
        where: Goes behind "text 3" in the message, such as " of the batch".
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"texts must be str, but text {index}{where} is {_line(text)}, of type "
                f"{type(text).__name__}; pass list(...) of a series, .to_pylist() of Arrow's"
            )
    whole = cast("Sequence[str]", texts)
    if (broken := first_broken(whole)) is not None:
        raise ValueError(
            f"text {broken}{where} has half a surrogate pair, which is no character: "
            f"{_line(whole[broken])}; text.encode('utf-8', 'replace').decode() mends it"
        )


def _line(value: object) -> str:
    """A value in a few words."""
    return " ".join(reprlib.repr(value).split())[:80]
