"""Checksums of what lies on disk, by XXH3.

They are for disks, cables and stray writes, not against forgers, who would write a new checksum,
too; so what counts is speed: XXH3 reads faster than disks do, several times as fast as BLAKE2, and
comes with datasets.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from st_jv5.files import write_text

SUFFIX = ".xxh3"
"""``00001.parquet.xxh3`` has the checksum of ``00001.parquet``."""

WORD = (1 << 64) - 1


def of_file(path: Path) -> str:
    """32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def write_beside(written: Path, target: Path) -> None:
    """Keep the checksum of ``written``, which is about to become ``target``, beside it."""
    write_text(target.with_name(target.name + SUFFIX), of_file(written) + "\n")


def is_intact(path: Path) -> bool | None:
    """Whether a file is as it was written; None: no checksum, so by an older version."""
    beside = path.with_name(path.name + SUFFIX)
    if not beside.is_file():
        return None
    return beside.read_bytes().strip() == of_file(path).encode()


def of_rows(rows: np.ndarray[Any, Any], first: int) -> int:
    """A number of 64 bits for ``(n, bytes)`` uint8 rows that are added to others.

    Each row's XXH3 is seeded by its place; their sum, modulo 2**64, grows with the rows: the sum
    of all is the sum of any parts.

    Args:
        rows: Contiguous.
        first: Place of the first row.
    """
    width, flat = rows.shape[1], rows.reshape(-1).data
    digest = xxhash.xxh3_64_intdigest
    places = range(len(rows))
    return sum(digest(flat[i * width : (i + 1) * width], first + i) for i in places) & WORD
