"""A folder of vectors: a manifest, and shards that are whole or absent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from st_jv5 import checksums
from st_jv5.choices import VectorFiles
from st_jv5.files import read_json, whole_file
from st_jv5.precision import Array, bytes_per_vector, check_precision

MANIFEST = "manifest.json"
RANGES = "ranges.npy"
FORMAT = 1
MOST_SHARDS = 1_000_000
"""More are a claim on memory, not a corpus."""
AGAIN = "the same st-jv5 encode makes it anew"
NAMES = ("model", "revision", "corpus")
"""Keys of the manifest that say where things were; the hashes beside them say what they are."""

MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "revision": (str, type(None)),
    "model_hash": (str,),
    "task": (str, type(None)),
    "prompt": (str,),
    "dim": (int,),
    "precision": (str,),
    "dtype": (str,),
    "corpus": (dict,),
    "corpus_sha256": (str,),
    "rows": (int,),
    "shard_rows": (int,),
    "files": (str,),
}
"""Key of a manifest that is read -> its types."""

KEPT_AS = {"float32": "float32", "float16": "float16", "int8": "int8", "binary": "uint8"}
"""Precision -> dtype of its codes."""


class VectorFolder:
    """The vectors of a corpus on disk.

    ``manifest.json`` names the model and its hash, task, prompt, dim, precision, source and number
    of rows. Shard ``n`` has the rows from ``n * shard_rows``, in the order of the source, as
    ``0000n.parquet`` (columns ``id`` and ``vector``) or as ``0000n.npy`` and ``0000n.ids.npy``. For
    int8 the ranges are in ``ranges.npy``, ``(2, dim)``. Binary vectors have one bit per sign. Each
    file has a checksum in a file beside it (``0000n.parquet.xxh3``), which is compared whenever the
    file is read. A folder of an older version without checksums is read without this check.

    Args:
        path: The folder.

    Raises:
        ValueError: The folder has no manifest, or a broken one.

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
        self._check_manifest()

    def _check_manifest(self) -> None:
        where = self.path / MANIFEST
        for key, types in MANIFEST_TYPES.items():
            if key not in self.manifest:
                raise ValueError(f"{where} lacks {key!r}; encode again")
            if type(value := self.manifest[key]) not in types:
                raise ValueError(f"{where}: {key} cannot be {value!r:.80}; encode again")
        if self.manifest.get("mode") not in (None, "head"):
            raise ValueError(f"{where}: mode cannot be {self.manifest['mode']!r:.80}; encode again")
        check_precision(self.precision)
        least = {"dim": 1, "shard_rows": 1, "rows": 0}
        for key, number in least.items():
            if self.manifest[key] < number:
                raise ValueError(f"{where}: {key} cannot be {self.manifest[key]}; encode again")
        if self.precision not in KEPT_AS:
            raise ValueError(f"{where}: vectors are not kept as {self.precision!r}")
        if self.shards > MOST_SHARDS:
            raise ValueError(f"{where}: {self.shards} shards are more than {MOST_SHARDS}")
        if self.manifest["files"] not in get_args(VectorFiles):
            raise ValueError(f"{where}: files cannot be {self.manifest['files']!r}")

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
            told = json.dumps({"format": FORMAT, **manifest}, indent=2, ensure_ascii=False)
            _write(path / MANIFEST, lambda file: file.write_text(told + "\n", encoding="utf-8"))
        return cls(path)

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"])

    @property
    def dim(self) -> int:
        return int(self.manifest["dim"])

    @property
    def rows(self) -> int:
        """Rows of all shards, written or not."""
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
        if self.precision != "int8":
            return None
        path = self.path / RANGES
        try:
            _check_intact(path)
            ranges: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {error}; {AGAIN}") from error
        if ranges.shape != (2, self.dim) or ranges.dtype != np.float32:
            raise ValueError(f"{path} has {ranges.dtype} {ranges.shape}, not (2, {self.dim})")
        if not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
            raise ValueError(f"{path} has invalid ranges: NaN, or a least value above the largest")
        return ranges

    def write_ranges(self, ranges: Array) -> None:
        """Keep int8's ranges."""
        _save(self.path / RANGES, ranges)

    def _shard(self, number: int) -> Path:
        return self.path / f"{number:05d}.{self.manifest['files']}"

    def is_written(self, number: int) -> bool:
        """Whether a shard is there; if it is, it is whole."""
        return self._shard(number).exists()

    def written(self) -> list[int]:
        """The shards that are there, ascending."""
        names = re.compile(rf"(\d{{5,}})\.{self.manifest['files']}")
        found = [match for path in self.path.iterdir() if (match := names.fullmatch(path.name))]
        return sorted(int(match[1]) for match in found)

    def missing(self) -> list[int]:
        """The shards that are not written."""
        return sorted(set(range(self.shards)) - set(self.written()))

    def damaged(self) -> dict[int, str]:
        """Shard -> what is wrong with it. All bytes are read; it is as fast as the disk."""
        faults = {}
        for number in self.written():
            try:
                self.load(number)
            except ValueError as error:
                faults[number] = str(error)
        return faults

    def remove(self, number: int) -> None:
        """Remove a shard, for it to be made again."""
        path = self._shard(number)
        for one in (path, path.with_suffix(".ids.npy")):
            one.unlink(missing_ok=True)

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
        # Floats neither compress nor repeat. A code of one byte would take four, but for a
        # dictionary of the 256 that there are.
        small = ["id", "vector.list.element"] if kept.itemsize == 1 else ["id"]
        _write(
            path,
            lambda file: pq.write_table(table, file, compression="none", use_dictionary=small),
        )

    def load(self, number: int) -> tuple[list[Any], Array]:
        """A shard's ids and codes.

        Raises:
            ValueError: The shard is not as it was written; names the file.
        """
        path = self._shard(number)
        if number >= self.shards:
            raise ValueError(
                f"{path} is beyond the {self.rows} rows of {MANIFEST}: it is of another corpus; "
                f"remove it"
            )
        try:
            ids, kept = self._read(path)
        except (OSError, ValueError, EOFError, KeyError, TypeError, pa.ArrowException) as error:
            raise ValueError(f"{path} cannot be read: {error}; {AGAIN}") from error
        kept_as = np.dtype(KEPT_AS[self.precision])
        width = bytes_per_vector(self.dim, self.precision) // kept_as.itemsize
        expected = (self.rows_of(number), width)
        if len(ids) != len(kept) or kept.shape != expected:
            raise ValueError(
                f"{path} has {len(ids)} ids and vectors {kept.shape}, not {expected[0]} and "
                f"{expected}; {AGAIN}"
            )
        if kept.dtype != kept_as:
            raise ValueError(f"{path} has {kept.dtype} vectors, not {kept_as}; {AGAIN}")
        if kept.dtype.kind == "f" and not (finite := np.isfinite(kept).all(axis=1)).all():
            row = int(finite.argmin())
            raise ValueError(f"{path}: the vector of {ids[row]!r} is NaN or infinite; {AGAIN}")
        return ids, kept

    def _read(self, path: Path) -> tuple[list[Any], Array]:
        _check_intact(path)
        if path.suffix == ".npy":
            names = path.with_suffix(".ids.npy")
            _check_intact(names)
            ids = np.load(names, allow_pickle=False).tolist()
            return ids, np.load(path, mmap_mode="r", allow_pickle=False)
        table = pq.read_table(path).combine_chunks()
        ids = table["id"].to_pylist()
        column = table["vector"].combine_chunks()
        if column.null_count or column.flatten().null_count or None in ids:
            raise ValueError("it has nulls")
        return ids, column.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)

    def loaded(self) -> Iterator[tuple[int, list[Any], Array]]:
        """Number, ids and codes of every shard that is written."""
        for number in self.written():
            yield number, *self.load(number)

    def faults(self) -> list[str]:
        """A line for each file that is damaged; none, if the folder is whole."""
        lines = []
        if checksums.is_intact(self.path / MANIFEST) is False:
            lines.append(f"{self.path / MANIFEST} was changed after it was written")
        try:
            _ = self.ranges
        except ValueError as error:
            lines.append(str(error))
        lines += self.damaged().values()
        if missing := self.missing():
            lines.append(
                f"{len(missing)} of {self.shards} shards are missing, such as "
                f"{self._shard(missing[0]).name}; the same st-jv5 encode goes on"
            )
        return lines


def verify(folder: str | Path) -> VectorFolder:
    """Read a whole folder of vectors and compare it with its checksums.

    Raises:
        ValueError: All that is not as it was written, a line each.

    Example:
        >>> verify(vectors_folder).rows
        4
    """
    found = VectorFolder(folder)
    if faults := found.faults():
        raise ValueError("\n".join(faults))
    return found


def _check_intact(path: Path) -> None:
    if checksums.is_intact(path) is False:
        raise ValueError(f"{path.name} is damaged, it has another checksum than when written")


def _save(path: Path, array: Array) -> None:
    def write(file: Path) -> None:
        with file.open("wb") as stream:  # np.save would add .npy to another name
            np.save(stream, array, allow_pickle=False)

    _write(path, write)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file, whole or not at all, and its checksum beside it."""
    with whole_file(path) as temporary:
        write(temporary)
        checksums.write_beside(temporary, path)
