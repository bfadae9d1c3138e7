"""One shard of a space of teacher vectors, and the hashes by which texts find it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from st_jv5 import checksums
from st_jv5.files import read_json, write_json
from st_jv5.texts import check_texts

HASH_BYTES = 16
SAMPLED_HASHES = 64
"""Hashes of a shard that are looked at when it is opened."""
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}

Array = np.ndarray[Any, Any]


class Shard:
    """One shard's files, as far as they counted when last looked at.

    Args:
        folder: Folder of the space.
        number: Which shard.
        dim: Width of the vectors.
        dtype: Dtype of the vectors.
        shards: Shards of the space; another number would send texts to other shards.
    """

    def __init__(self, folder: Path, number: int, dim: int, dtype: str, shards: int) -> None:
        self.number, self.shards = number, shards
        self.dtype = DTYPES[dtype]
        self.dim = dim
        self.paths = {
            kind: folder / f"{number:03d}.{kind}" for kind in ("vectors", "hashes", "json", "lock")
        }
        self.row_bytes = {"vectors": dim * self.dtype.itemsize, "hashes": HASH_BYTES}
        self.lock = FileLock(self.paths["lock"])
        self._made: dict[str, tuple[int, Any]] = {}
        self.sums: dict[str, str] | None = None
        self.rows = -1
        self.refresh()

    def refresh(self) -> Shard:
        """See what has been added since."""
        path = self.paths["json"]
        if not path.exists() and not path.parent.is_dir():
            raise ValueError(f"{path.parent} is gone: moved or removed since it was opened")
        record = read_json(path) if path.exists() else {"rows": 0}
        rows = record.get("rows")
        if type(rows) is not int or rows < 0:
            raise ValueError(f"{path}: rows must be a number >= 0, not {rows!r}")
        if rows != self.rows:
            self._check_sizes(rows)
            sums = record.get("sums")
            if sums is not None and (
                not isinstance(sums, dict) or set(sums) != set(self.row_bytes)
            ):
                raise ValueError(f"{path}: sums must be of {' and '.join(self.row_bytes)}")
            self._check_count(rows, record.get("shards"))
            self.sums, self.rows = sums, rows
        return self

    def _check_sizes(self, rows: int) -> None:
        for kind, row_bytes in self.row_bytes.items():
            size = self.paths[kind].stat().st_size if self.paths[kind].exists() else 0
            if size < rows * row_bytes:
                raise ValueError(
                    f"{self.paths[kind]} has {size} bytes, but its {rows} rows need "
                    f"{rows * row_bytes}: it was cut; restore it, or remove {self.number:03d}.* "
                    f"there and fill the store again"
                )

    def _check_count(self, rows: int, shards: object) -> None:
        """Check the number of shards, by what the shard's file says or by its first hashes."""
        first = self._map("hashes", rows)[:SAMPLED_HASHES]
        strays = shard_of(first, self.shards) != self.number
        if strays.any() or shards not in (None, self.shards):
            raise ValueError(
                f"{self.paths['json']} is of a space of {shards or 'another number of'} shards, "
                f"not {self.shards}; put the right number back into space.json"
            )

    def faults(self) -> list[str]:
        """What is not as it was written, a line each. Reads all, as fast as the disk."""
        faults = []
        for kind, rows in (("vectors", self.vectors), ("hashes", self.hashes)):
            if self.sums is not None and self.sums[kind] != _sum(rows, 0):
                faults.append(
                    f"{self.paths[kind]} is damaged: its checksum is another; restore it, or "
                    f"remove {self.number:03d}.* there and fill the store again"
                )
        strays = int((shard_of(self.hashes, self.shards) != self.number).sum())
        if strays and not faults:
            faults.append(f"{self.paths['hashes']} has {strays} hashes of other shards' texts")
        return faults

    def _kept(self, kind: str, make: Callable[[int], Any]) -> Any:
        """A value computed from the rows, and again when rows are added; perhaps by two threads."""
        rows = self.rows
        kept = self._made.get(kind)
        if kept is None or kept[0] != rows:
            kept = self._made[kind] = (rows, make(rows))
        return kept[1]

    def _map(self, kind: str, rows: int) -> Array:
        wide = self.dtype.itemsize == 4
        raw, width = {
            "vectors": (np.float32 if wide else np.uint16, self.dim),
            "hashes": (np.uint8, HASH_BYTES),
        }[kind]
        if not rows:  # nothing can be mapped
            return np.empty((0, width), raw)
        return np.memmap(self.paths[kind], raw, "r", shape=(rows, width))

    @property
    def vectors(self) -> Array:
        """``(rows, dim)``, memory mapped; 16-bit floats as uint16."""
        found: Array = self._kept("vectors", partial(self._map, "vectors"))
        return found

    @property
    def hashes(self) -> Array:
        """uint8 ``(rows, 16)``, memory mapped."""
        found: Array = self._kept("hashes", partial(self._map, "hashes"))
        return found

    def find(self, hashes: Array) -> Array:
        """Index of each hash in the shard, -1 where it is not there."""
        if not self.rows:
            return np.full(len(hashes), -1, dtype=np.int64)
        known_high, known_low, order = self._kept("index", lambda rows: _sorted(self.hashes))
        high, low = halves(hashes)
        place = np.minimum(np.searchsorted(known_high, high), len(order) - 1)
        same = (known_high[place] == high) & (known_low[place] == low)
        return np.where(same, order[place], -1)

    def append(self, hashes: Array, vectors: Tensor) -> None:
        """Write rows that are not there yet; call it as the shard's one writer."""
        raw = vectors.contiguous().view(torch.uint8).numpy()
        # Of a store of before, without checksums, what is there is taken as it is.
        sums = self.sums or {"vectors": _sum(self.vectors, 0), "hashes": _sum(self.hashes, 0)}
        for kind, more in (("vectors", raw), ("hashes", hashes)):
            total = int(sums[kind], 16) + int(_sum(more, self.rows), 16)
            sums = {**sums, kind: f"{total & checksums.WORD:016x}"}
        for kind, data in (("vectors", raw), ("hashes", hashes)):
            with self.paths[kind].open("ab") as file:
                if file.tell() != (size := self.rows * self.row_bytes[kind]):
                    file.truncate(size)  # what a killed writer left
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
        rows = self.rows + len(hashes)
        write_json(self.paths["json"], {"rows": rows, "shards": self.shards, "sums": sums})


def _sum(rows: Array, first: int) -> str:
    """Checksum of ``(n, ...)`` rows, the first of which is row ``first`` of the shard."""
    raw = np.ascontiguousarray(rows)
    flat = raw.view(np.uint8).reshape(len(raw), -1) if len(raw) else np.empty((0, 1), np.uint8)
    return f"{checksums.of_rows(flat, first):016x}"


def _sorted(hashes: Array) -> tuple[Array, Array, Array]:
    high, low = halves(hashes)
    order = np.argsort(high, kind="stable")
    return high[order], low[order], order


def hash_texts(texts: Sequence[str]) -> Array:
    """16 bytes per text, uint8 ``(n, 16)``; of texts that have ``hashes`` already, those."""
    if isinstance(known := getattr(texts, "hashes", None), np.ndarray):
        return known
    try:
        digests = b"".join(
            [hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest() for text in texts]
        )
    except (AttributeError, UnicodeEncodeError):
        check_texts(texts)
        raise
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, HASH_BYTES)


def first_of_each(hashes: Array) -> tuple[Array, Array]:
    """Places of the first of equal hashes, int64 in their order; and of each hash, which it is.

    Example:
        >>> first, which = first_of_each(hash_texts(["b", "a", "b"]))
        >>> first.tolist(), which.tolist()
        ([0, 1], [0, 1, 0])
    """
    high, low = halves(hashes)
    order = np.argsort(high, kind="stable")
    high, low = high[order], low[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = order[new]
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    which = np.empty(len(order), dtype=np.int64)
    which[order] = rank[np.cumsum(new) - 1]
    return np.sort(first), which


def halves(hashes: Array) -> tuple[Array, Array]:
    """The two 64-bit numbers of each hash; sorted by the first, then the second, they are in order.

    Equal first halves of different texts are a matter of 2**-64 a pair; a shard's index looks at
    the first of them alone, so the second of such texts would be computed again at every fill.
    """
    numbers = np.ascontiguousarray(hashes).view(">u8").astype(np.uint64)
    return numbers[:, 0], numbers[:, 1]


def shard_of(hashes: Array, shards: int) -> Array:
    """Which shard a hash belongs to: equal ranges of its first four bytes."""
    first = np.ascontiguousarray(hashes[:, :4]).view(">u4").astype(np.uint64)[:, 0]
    return (first * np.uint64(shards)) >> np.uint64(32)


def by_shard(numbers: Array, shards: list[Shard]) -> Iterator[tuple[Shard, Any]]:
    """Each shard that is asked for, with the places that ask for it."""
    if len(shards) == 1:
        if len(numbers):
            yield shards[0], slice(None)
        return
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(len(shards) + 1)).tolist()
    for shard, begin, end in zip(shards, bounds, bounds[1:], strict=False):
        if end > begin:
            yield shard, order[begin:end]
