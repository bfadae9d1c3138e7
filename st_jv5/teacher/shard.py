"""One shard of a space of teacher vectors, and the hashes by which texts find it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from st_jv5.files import read_json, write_json

HASH_BYTES = 16
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}

Array = np.ndarray[Any, Any]


class Shard:
    """One shard's files, as far as they counted when last looked at."""

    def __init__(self, folder: Path, number: int, dim: int, dtype: str) -> None:
        self.number = number
        self.dtype = DTYPES[dtype]
        self.dim = dim
        self.paths = {
            kind: folder / f"{number:03d}.{kind}" for kind in ("vectors", "hashes", "json", "lock")
        }
        self.row_bytes = {"vectors": dim * self.dtype.itemsize, "hashes": HASH_BYTES}
        self.lock = FileLock(self.paths["lock"])
        self._made: dict[str, tuple[int, Any]] = {}
        self.rows = -1
        self.refresh()

    def refresh(self) -> Shard:
        """See what has been added since."""
        path = self.paths["json"]
        rows = read_json(path).get("rows") if path.exists() else 0
        if not isinstance(rows, int) or rows < 0:
            raise ValueError(f"{path}: rows must be a number >= 0, not {rows!r}")
        if rows != self.rows:
            for kind, row_bytes in self.row_bytes.items():
                size = self.paths[kind].stat().st_size if self.paths[kind].exists() else 0
                if size < rows * row_bytes:
                    raise ValueError(
                        f"{self.paths[kind]} has {size} bytes, but its {rows} rows need "
                        f"{rows * row_bytes}: it was cut; restore it, or remove "
                        f"{path.stem}.* there and fill the store again"
                    )
            self.rows = rows
        return self

    def _kept(self, kind: str, make: Callable[[int], Any]) -> Any:
        """What was made of the rows, made anew when there are others; threads may make it twice."""
        rows = self.rows
        kept = self._made.get(kind)
        if kept is None or kept[0] != rows:
            kept = self._made[kind] = (rows, make(rows))
        return kept[1]

    @property
    def vectors(self) -> Array:
        """``(rows, dim)``, memory mapped; 16-bit floats as uint16."""
        raw = np.uint16 if self.dtype.itemsize == 2 else np.float32
        path, dim = self.paths["vectors"], self.dim
        found: Array = self._kept(
            "vectors", lambda rows: np.memmap(path, raw, "r", shape=(rows, dim))
        )
        return found

    @property
    def hashes(self) -> Array:
        """uint8 ``(rows, 16)``, memory mapped."""
        path = self.paths["hashes"]
        found: Array = self._kept(
            "hashes", lambda rows: np.memmap(path, np.uint8, "r", shape=(rows, HASH_BYTES))
        )
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
        for kind, data in (("vectors", raw), ("hashes", hashes)):
            with self.paths[kind].open("ab") as file:
                file.truncate(self.rows * self.row_bytes[kind])  # what a killed writer left
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
        write_json(self.paths["json"], {"rows": self.rows + len(hashes)})


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
    except (AttributeError, UnicodeEncodeError) as error:
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"texts must be str, but text {index} is {text!r}") from error
        raise ValueError(f"a text is not valid Unicode: {error}") from error
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
