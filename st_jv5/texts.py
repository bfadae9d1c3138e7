"""Texts from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import load_dataset

KINDS = {".txt": "text", ".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    """The texts of a file: lines of .txt, or a column of .parquet, .jsonl, .json or .csv.

    Args:
        path: The file.
        column: Needed where the file has several columns. Rows without a text are left out.

    Example:
        >>> read_texts("training/data/wordnet.parquet", "gloss")[0]
        'any large dark enclosed space'
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    if path.suffix not in KINDS:
        raise ValueError(f"{path} must end with one of {', '.join(KINDS)}")
    table: Any = load_dataset(KINDS[path.suffix], data_files=str(path), split="train")
    known = table.column_names
    if column is None and len(known) == 1:
        column = known[0]
    if column not in known:
        problem = f"no column {column!r}" if column else f"{len(known)} columns; name one"
        raise ValueError(f"{path} has {problem}; it has: {', '.join(known)}")
    texts = [text for text in table[column] if text is not None]
    for text in texts[:1]:
        if not isinstance(text, str):
            raise ValueError(f"column {column!r} of {path} must hold texts, not {text!r}")
    if not texts:
        raise ValueError(f"{path} has no text")
    return texts
