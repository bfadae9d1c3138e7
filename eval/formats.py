"""Which container for a teacher's vectors: the measurement behind ``TeacherStore``'s raw files.

    pip install lmdb
    python eval/formats.py

200,000 rows of 768 float16 numbers behind 16-byte hashes, written in chunks of 1024; then batches
of 1024 random rows are gathered into one array.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import safe_open
from safetensors.numpy import save_file

ROWS, DIM, CHUNK, BATCH, SHARDS = 195 * 1024, 768, 1024, 1024, 16
CHUNKS = ROWS // CHUNK
Array = np.ndarray[Any, Any]


def chunk(number: int) -> tuple[Array, Array]:
    """Vectors and hashes of one chunk."""
    vectors = np.random.default_rng(number).standard_normal((CHUNK, DIM)).astype(np.float16)
    names = (f"{number} {row}".encode() for row in range(CHUNK))
    digests = b"".join(hashlib.blake2b(name, digest_size=16).digest() for name in names)
    return vectors, np.frombuffer(digests, np.uint8).reshape(-1, 16)


def append(path: Path, data: Array) -> None:
    """Append, and wait until it is on disk."""
    with path.open("ab") as file:
        file.write(data.tobytes())
        file.flush()
        os.fsync(file.fileno())


def scatter(out: Array, parts: Array, count: int, take: Callable[[int, Array], Array]) -> Array:
    """Fill a batch part by part: ``take(part, places)`` gives the rows of ``out[places]``."""
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(count + 1)).tolist()
    for part, (begin, end) in enumerate(pairwise(bounds)):
        if end > begin:
            places = order[begin:end]
            out[places] = take(part, places)
    return out


class Raw:
    """``numpy.memmap`` over raw files."""

    def __init__(self, shards: int) -> None:
        self.shards = shards

    def write(self, folder: Path, number: int, vectors: Array, hashes: Array) -> None:
        append(folder / f"{number % self.shards}.vectors", vectors)
        append(folder / f"{number % self.shards}.hashes", hashes)

    def open(self, folder: Path) -> None:
        self.maps = [
            np.memmap(folder / f"{shard}.vectors", np.float16, "r").reshape(-1, DIM)
            for shard in range(self.shards)
        ]

    def gather(self, rows: Array) -> Array:
        number, place = rows // CHUNK, rows % CHUNK
        index, shard = number // self.shards * CHUNK + place, number % self.shards
        out = np.empty((len(rows), DIM), np.float16)
        return scatter(out, shard, self.shards, lambda s, places: self.maps[s][index[places]])


class Safetensors:
    """A file per chunk, slices of it."""

    def write(self, folder: Path, number: int, vectors: Array, hashes: Array) -> None:
        save_file({"vectors": vectors, "hashes": hashes.copy()}, folder / f"{number}.safetensors")

    def open(self, folder: Path) -> None:
        self.slices = [
            safe_open(folder / f"{number}.safetensors", "np").get_slice("vectors")
            for number in range(CHUNKS)
        ]

    def gather(self, rows: Array) -> Array:
        out = np.empty((len(rows), DIM), np.float16)
        for place, row in enumerate(rows.tolist()):
            begin = row % CHUNK
            out[place] = self.slices[row // CHUNK][begin : begin + 1]
        return out


class Arrow:
    """An IPC file per chunk, memory mapped: ``take`` of the whole column."""

    schema = pa.schema([("hash", pa.binary(16)), ("vector", pa.list_(pa.float16(), DIM))])

    def write(self, folder: Path, number: int, vectors: Array, hashes: Array) -> None:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
        keys = pa.array([bytes(one) for one in hashes], pa.binary(16))
        batch = pa.record_batch([keys, column], schema=self.schema)
        with pa.ipc.new_file(str(folder / f"{number}.arrow"), self.schema) as writer:
            writer.write_batch(batch)

    def open(self, folder: Path) -> None:
        paths = [folder / f"{number}.arrow" for number in range(CHUNKS)]
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        self.column = pa.concat_tables(tables)["vector"]

    def gather(self, rows: Array) -> Array:
        found = self.column.take(pa.array(rows)).chunks
        return np.concatenate([one.flatten().to_numpy() for one in found]).reshape(-1, DIM)


class ArrowViews(Arrow):
    """The same files, gathered through numpy views of the chunks."""

    def open(self, folder: Path) -> None:
        super().open(folder)
        self.views = [one.flatten().to_numpy().reshape(-1, DIM) for one in self.column.chunks]

    def gather(self, rows: Array) -> Array:
        number, place = rows // CHUNK, rows % CHUNK
        out = np.empty((len(rows), DIM), np.float16)
        return scatter(out, number, CHUNKS, lambda n, places: self.views[n][place[places]])


class Lmdb:
    """Hash -> vector."""

    def write(self, folder: Path, number: int, vectors: Array, hashes: Array) -> None:
        if number == 0:
            self.environment = self._open(folder)
        with self.environment.begin(write=True) as transaction:
            for key, row in zip(hashes, vectors, strict=True):
                transaction.put(bytes(key), row.tobytes())

    def _open(self, folder: Path) -> Any:
        import lmdb

        return lmdb.open(str(folder), map_size=1 << 33)

    def open(self, folder: Path) -> None:
        self.keys = [bytes(key) for number in range(CHUNKS) for key in chunk(number)[1]]

    def gather(self, rows: Array) -> Array:
        out = np.empty((len(rows), DIM), np.float16)
        with self.environment.begin(buffers=True) as transaction:
            for place, row in enumerate(rows.tolist()):
                out[place] = np.frombuffer(transaction.get(self.keys[row]), np.float16)
        return out


def main() -> None:
    """One line per way."""
    ways: dict[str, Any] = {
        "raw, one file": Raw(1),
        f"raw, {SHARDS} shards": Raw(SHARDS),
        "safetensors, a file a chunk": Safetensors(),
        "Arrow IPC, take": Arrow(),
        "Arrow IPC, numpy views": ArrowViews(),
        "LMDB": Lmdb(),
    }
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, ROWS, BATCH) for _ in range(60)]
    first: Array | None = None
    for name, way in ways.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            writing = 0.0
            for number in range(CHUNKS):
                vectors, hashes = chunk(number)
                begin = time.perf_counter()
                way.write(folder, number, vectors, hashes)
                writing += time.perf_counter() - begin
            way.open(folder)
            found = way.gather(batches[0])
            if first is None:
                first = found
            if not np.array_equal(found, first):
                raise SystemExit(f"{name} gives other vectors")
            seconds = []
            for _ in range(4):
                for rows in batches:
                    begin = time.perf_counter()
                    way.gather(rows)
                    seconds.append(time.perf_counter() - begin)
            size = sum(path.stat().st_size for path in folder.iterdir())
            gather = statistics.median(seconds[len(batches) :])  # the first round reads the pages
            print(
                f"{name:28s} write {writing:6.2f} s   gather {1000 * gather:7.3f} ms   "
                f"{size / (2 * DIM * ROWS) - 1:+.2%} bytes beyond the vectors",
                flush=True,
            )


if __name__ == "__main__":
    main()
