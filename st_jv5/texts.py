"""Read rows and texts from a file, unchanged: no types are guessed, no names are patterns."""

from __future__ import annotations

import csv
import gzip
import io
import json
import reprlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {
    ".txt": "text",
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
PACKED = (".gz", ".zst")
"""Endings behind those of text, such as ``.jsonl.gz``."""

WANTED = f"must end with one of {', '.join(KINDS)}, or all but .parquet with .gz or .zst behind it"
"""What is said of a file of another name."""

READ_ROWS = 4096
"""Rows that are read together."""

Table = dict[str, list[Any]]
"""Some rows: column -> its values. A row that lacks a column has None there."""


def ending(path: str | Path) -> str:
    """The one of :data:`KINDS` that a file's name has; empty: none.

    Example:
        >>> ending("a/faq.jsonl.gz"), ending("FAQ.CSV"), ending("faq.xlsx")
        ('.jsonl', '.csv', '')
    """
    name = Path(str(path).lower())
    packed = name.suffix in PACKED
    found = Path(name.stem).suffix if packed else name.suffix
    return "" if found not in KINDS or (packed and found == ".parquet") else found


def stem(path: str | Path) -> str:
    """A file's name without its :func:`ending`; of other names the whole.

    Example:
        >>> stem("a/faq.jsonl.gz"), stem("FAQ.CSV"), stem("faq.xlsx")
        ('faq', 'FAQ', 'faq.xlsx')
    """
    name, found = Path(path).name, ending(path)
    return name[: name.lower().rindex(found)] if found else name


def read_tables(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Table]:
    """A file's rows, :data:`READ_ROWS` at a time; memory does not grow (except for ``.json``).

    Values are as in the file: those of .csv and .tsv are all texts, ``NA`` and ``007`` too. A .txt
    has a column ``text``, one row per line; a byte order mark is not part of a text.

    Args:
        path: A .txt, .parquet, .jsonl, .json, .csv or .tsv file; all but .parquet also packed, as
            .gz or .zst.
        columns: Columns to read; None reads all.

    Raises:
        ValueError: The file is missing, or its content does not fit its name; the message names
            file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    kind = ending(path)
    if not kind:
        raise ValueError(f"{path} {WANTED}")
    if kind == ".parquet":
        yield from _read_parquet(path, columns)
        return
    rows = READERS[kind](path)
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


def _opened(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked."""
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    if path.suffix.lower() == ".zst":
        stream: Any = pa.CompressedInputStream(str(path), "zstd")
        return io.BufferedReader(stream)
    return path.open("rb")


def _lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """Lines with their ends; an error names the line that is no UTF-8."""
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline=newline) as file:
        try:
            yield from file
        except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
            raise ValueError(f"{path} cannot be unpacked: {error}") from error
        except OSError as error:
            if path.suffix.lower() not in PACKED:
                raise
            raise ValueError(f"{path} cannot be unpacked: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8: {_first_broken_line(path)}; save the file as UTF-8"
            ) from error


def _first_broken_line(path: Path) -> str:
    """Byte and line that cannot be read as UTF-8."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02x} at line {number}"
    return "its last line is cut"


def _read_text(path: Path) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        yield {"text": line.removesuffix("\n")}


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # 128 KB are less than a long document
    tabs = "\t" if ending(path) == ".tsv" else ","
    reader = csv.reader(_lines(path, newline=""), strict=True, delimiter=tabs)
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
        raise ValueError(f"{path}, {place}: not JSON: {error}") from error
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
        raise ValueError(f"{path} is not JSON: {error}") from error
    for row, found in enumerate(rows):
        if not isinstance(found, dict):
            raise ValueError(f"row {row} of {path} must be an object, not {str(found)[:80]!r}")
        yield found


READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    """The texts of a file: the lines of .txt, or one column of other kinds (:func:`read_tables`).

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
            if text is not None and (text or KINDS[ending(path)] != "csv"):
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
