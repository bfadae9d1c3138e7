"""A folder of vectors: a manifest, and shards that are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from st_jv5.files import read_json, whole_file, write_json
from st_jv5.precision import Array, check_precision

MANIFEST = "manifest.json"
RANGES = "ranges.npy"
FORMAT = 1
NAMES = ("model", "revision", "corpus")
"""Where things were found; their hashes say what they are."""
Files = Literal["parquet", "npy"]


class VectorFolder:
    """The vectors of a corpus as they lie on disk.

    ``manifest.json`` tells the model and its hash, task, prompt, dim, precision, source and rows;
    shard ``n`` has the rows from ``n * shard_rows`` on, in the order of the source, as
    ``0000n.parquet`` (columns ``id`` and ``vector``) or as ``0000n.npy`` and ``0000n.ids.npy``.
    int8's ranges stand in ``ranges.npy``, ``(2, dim)``. Binary vectors are a bit per sign.

    Args:
        path: The folder.

    Raises:
        ValueError: It has no manifest, or one of another format.

    Example:
        >>> VectorFolder(vectors_folder).load(0)[1].shape
        (4, 64)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise ValueError(f"{path} has no {MANIFEST}; make one with: st-jv5 encode")
        self.manifest = read_json(self.path / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise ValueError(
                f"{path}/{MANIFEST} has format {self.manifest.get('format')!r}; this version reads "
                f"{FORMAT}"
            )
        check_precision(self.precision)

    @classmethod
    def check_begun(cls, path: str | Path, manifest: dict[str, Any]) -> None:
        """An error if the folder cannot be had for a run with these settings, all or some."""
        path = Path(path)
        if (path / MANIFEST).is_file():
            there = cls(path).manifest
            for key, value in json.loads(json.dumps(manifest)).items():
                if key not in NAMES and there.get(key) != value:
                    raise ValueError(
                        f"{path} was begun with {key} {there.get(key)!r}, and this run has "
                        f"{value!r}; choose another folder, or the same settings"
                    )
        elif path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; choose a folder")
        elif path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is there already and has no {MANIFEST}; choose another")

    @classmethod
    def create(cls, path: str | Path, manifest: dict[str, Any]) -> VectorFolder:
        """The folder with this manifest: a new one, or one that another run has begun.

        Raises:
            ValueError: It was begun with other settings; names the first that differs.
        """
        path = Path(path)
        cls.check_begun(path, manifest)
        if not (path / MANIFEST).is_file():
            write_json(path / MANIFEST, {"format": FORMAT, **manifest})
        return cls(path)

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"])

    @property
    def dim(self) -> int:
        return int(self.manifest["dim"])

    @property
    def rows(self) -> int:
        """Of all shards, written or not."""
        return int(self.manifest["rows"])

    @property
    def shard_rows(self) -> int:
        return int(self.manifest["shard_rows"])

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @cached_property
    def ranges(self) -> Array | None:
        """``(2, dim)`` for int8, else None."""
        path = self.path / RANGES
        found: Array | None = np.load(path) if self.precision == "int8" else None
        return found

    def write_ranges(self, ranges: Array) -> None:
        """Keep int8's ranges."""
        _save(self.path / RANGES, ranges)

    def _shard(self, number: int) -> Path:
        return self.path / f"{number:05d}.{self.manifest['files']}"

    def is_written(self, number: int) -> bool:
        """Whether a shard is there; if it is, it is whole."""
        return self._shard(number).exists()

    def missing(self) -> list[int]:
        """The shards that are not written."""
        return [number for number in range(self.shards) if not self.is_written(number)]

    def rows_of(self, number: int) -> int:
        """Rows of a shard."""
        return min(self.shard_rows, self.rows - number * self.shard_rows)

    def write(self, number: int, ids: list[Any], kept: Array) -> None:
        """Write a shard: ids, and :func:`~st_jv5.precision.codes`."""
        assert len(ids) == len(kept) == self.rows_of(number)
        path = self._shard(number)
        if path.suffix == ".npy":
            _save(path.with_suffix(".ids.npy"), np.array(ids))
            _save(path, kept)
            return
        width = kept.shape[1]
        flat = pa.array(kept.reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, width)
        table = pa.table({"id": pa.array(ids), "vector": vectors})
        with whole_file(path) as temporary:
            # Floats neither compress nor repeat. A code of one byte would take four, but for a
            # dictionary of the 256 that there are.
            small = ["id", "vector.list.element"] if kept.itemsize == 1 else ["id"]
            pq.write_table(table, temporary, compression="none", use_dictionary=small)

    def load(self, number: int) -> tuple[list[Any], Array]:
        """A shard's ids and codes."""
        path = self._shard(number)
        try:
            if path.suffix == ".npy":
                ids = np.load(path.with_suffix(".ids.npy"), allow_pickle=False).tolist()
                kept: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                table = pq.read_table(path).combine_chunks()
                ids = table["id"].to_pylist()
                column = table["vector"].combine_chunks()
                kept = column.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"{path} cannot be read: {error}; remove it, and encode again"
            ) from error
        if not len(ids) == len(kept) == self.rows_of(number):
            raise ValueError(
                f"{path} has {len(ids)} ids and {len(kept)} vectors, not {self.rows_of(number)}; "
                f"remove it, and encode again"
            )
        return ids, kept

    def loaded(self) -> Iterator[tuple[int, list[Any], Array]]:
        """Number, ids and codes of every shard that is written."""
        for number in range(self.shards):
            if self.is_written(number):
                yield number, *self.load(number)


def _save(path: Path, array: Array) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
