"""A folder of teacher vectors, found by the text that they embed."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from st_jv5.files import read_json, write_json
from st_jv5.teacher.shard import (
    DTYPES,
    HASH_BYTES,
    Array,
    Shard,
    by_shard,
    hash_texts,
    shard_of,
)

logger = logging.getLogger(__name__)

FORMAT = 2
SHARDS = 16
"""Shards of a new space: how many processes can fill it at once."""
MOST_SHARDS = 1000
LOCK_SECONDS = 60.0
"""How long :meth:`TeacherStore.add` waits for another writer of a shard."""


@dataclass(frozen=True)
class Space:
    """All that vectors must have in common to be comparable, such as teacher, revision and prompt.

    Example:
        >>> Space("org/my-teacher", revision="", prompt="", max_tokens=512, dim=384).id
        'my-teacher-f3b6c00a9a1f'
    """

    teacher: str
    """Name of the teacher model."""
    _: KW_ONLY
    revision: str
    """The teacher's revision, or "" where it has none."""
    prompt: str
    """The text put before each text."""
    max_tokens: int
    """The teacher's inputs are cut to this many tokens."""
    dim: int
    """Width of its vectors."""
    dtype: str = "float16"
    """Dtype of the stored vectors: float16, float32 or bfloat16."""
    pooling: str = ""
    """The pooling, if it is not the model's own: lasttoken, mean or cls."""

    @property
    def id(self) -> str:
        """Name of the space's folder: the teacher's name, for readers, and a hash of all fields."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.teacher.rsplit("/", 1)[-1]).strip("-")
        return f"{readable[:40] or 'teacher'}-{digest[:12]}"


class TeacherStore:
    """Teacher vectors on disk, memory mapped, deduplicated by text.

    A space is a folder: ``space.json`` says what it holds; each of its shards is three files,
    ``007.vectors``, the raw ``(n, dim)`` matrix, ``007.hashes``, the 16-byte hash of each row's
    text, and ``007.json``, how many rows there are and both files' checksums. The hash of a text
    decides its shard. Rows are only appended, and ``007.json`` is replaced last, by a rename. So a
    write is complete or has no effect: rows that a killed writer left are not counted, and the next
    writer overwrites them. Any number of processes may read while one per shard writes; a second
    writer of a shard gets an error.

    A row's number is ``index in its shard * shards + shard``, so it does not change when rows are
    added. It is valid only in its own store.

    Raw files under ``numpy.memmap`` were compared with Arrow, safetensors and LMDB
    (``notes/log.md``): they are the fastest to read rows from, and can be appended to.

    Example:
        >>> store = TeacherStore.open(folder, create=True).space("my-teacher", dim=2)
        >>> store.add(["a cat", "a dog"], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> store.gather(store.rows(["a dog"])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, folder: Path, key: Space | None = None) -> None:
        self.folder = folder
        self.key = key
        self._shards: list[Shard] | None = None

    def __reduce__(self) -> Any:
        return TeacherStore, (self.folder, self.key)  # memory maps do not travel

    @classmethod
    def open(cls, folder: str | Path, create: bool = False) -> TeacherStore:
        """Open a store.

        Args:
            folder: Folder of the store.
            create: Create an empty store if there is none. If False, a missing store is an error.
        """
        folder = Path(folder)
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise FileNotFoundError(
                f"no teacher store at {folder}: there is no such folder; st_jv5.teacher.fill and a "
                f"recipe's teacher stage make one (TeacherStore.open(..., create=True))"
            )
        return cls(folder)

    def spaces(self) -> list[Space]:
        """All spaces of the store."""
        spaces = []
        for path in sorted(self.folder.glob("*/space.json")):
            record = read_json(path)
            if record.get("format") != FORMAT:
                logger.warning(
                    "%s has format %s, this st_jv5 reads %d: not used",
                    path.parent,
                    record.get("format", 1),
                    FORMAT,
                )
                continue
            spaces.append(_space(path, record.get("space")))
        return spaces

    def space(
        self,
        teacher: str,
        *,
        revision: str = "",
        prompt: str = "",
        max_tokens: int = 512,
        dim: int | None = None,
        dtype: str = "float16",
        pooling: str = "",
        shards: int | None = None,
    ) -> TeacherStore:
        """Open one space of the store; it is created if it is new (then ``dim`` is needed).

        Args:
            teacher: Name of the teacher. This and all further arguments but the last: see
                :class:`Space`.
            shards: Shards of a new space: how many processes can fill it at once; None is 16.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, not {max_tokens}")
        if shards is not None and not 1 <= shards <= MOST_SHARDS:
            raise ValueError(f"shards must lie in 1..{MOST_SHARDS}, not {shards}")
        asked = Space(
            teacher,
            revision=revision,
            prompt=prompt,
            max_tokens=max_tokens,
            dim=dim or 0,
            dtype=dtype,
            pooling=pooling,
        )
        known = [
            space
            for space in self.spaces()
            if space == replace(asked, dim=space.dim) and dim in (None, space.dim)
        ]
        if len(known) > 1:
            raise ValueError(f"{asked} is there in several widths; pass dim=, one of {known}")
        if known:
            view = TeacherStore(self.folder, known[0])
            if shards not in (None, view.shards):
                raise ValueError(
                    f"{view.path} has {view.shards} shards, not {shards}; write a store with "
                    f"another number by `st-jv5 teacher merge {self.folder} --shards {shards}`"
                )
            return view
        if dim is None:
            raise ValueError(f"{asked} is not in {self.folder}; pass dim= to start it")
        if dim < 1:
            raise ValueError(f"dim must be positive, not {dim}")
        view = TeacherStore(self.folder, asked)
        write_json(
            view.path / "space.json",
            {"format": FORMAT, "shards": shards or SHARDS, "space": asdict(asked)},
        )
        return view

    # -------------------------------------------------------------------- one space from here on

    @property
    def _key(self) -> Space:
        if self.key is None:
            raise ValueError("choose a space first: store = store.space(teacher, ...)")
        return self.key

    @property
    def path(self) -> Path:
        """The space's folder."""
        return self.folder / self._key.id

    @property
    def shards(self) -> int:
        """How many shards the space has."""
        return len(self._all())

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._key.dim

    def __len__(self) -> int:
        """Number of vectors in the space."""
        return sum(shard.refresh().rows for shard in self._all())

    def describe(self) -> dict[str, Any]:
        """The space as JSON; what a projection that is trained on it says of its teacher."""
        return asdict(self._key)

    def add(self, texts: Sequence[str], vectors: Array | Tensor) -> None:
        """Append vectors of texts; texts that already have a vector are skipped.

        Args:
            texts: ``n`` texts.
            vectors: ``(n, dim)``.

        Raises:
            ValueError: The shape is wrong, or a vector has a NaN or is zero (the message names the
                text).
        """
        self.add_hashed(hash_texts(texts), self.checked(texts, vectors))

    def checked(self, texts: Sequence[str], vectors: Array | Tensor) -> Tensor:
        """Vectors as the space keeps them: on the CPU, in its dtype; errors as in :meth:`add`."""
        vectors = torch.as_tensor(
            np.asarray(vectors) if not isinstance(vectors, Tensor) else vectors
        )
        if tuple(vectors.shape) != (len(texts), self.dim):
            raise ValueError(
                f"{len(texts)} texts need vectors of shape ({len(texts)}, {self.dim}), "
                f"not {tuple(vectors.shape)}; the first text: {texts[:1]!r:.200}"
            )
        stored = vectors.detach().cpu().to(DTYPES[self._key.dtype])
        broken = ~torch.isfinite(stored).all(dim=1) | (stored == 0).all(dim=1)
        if broken.any():
            index = int(broken.nonzero()[0])
            raise ValueError(
                f"the vector of text {index} is NaN, infinite or zero as {self._key.dtype}: "
                f"{texts[index][:200]!r}"
            )
        return stored

    def add_hashed(self, hashes: Array, stored: Tensor) -> None:
        """:meth:`add` for what :func:`hash_texts` and :meth:`checked` gave."""
        numbers = shard_of(hashes, self.shards)
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            with self.writing(int(number)) as shard:
                new = rows[shard.find(hashes[rows]) < 0]
                _, first = np.unique(hashes[new], axis=0, return_index=True)
                new = new[np.sort(first)]
                if len(new):
                    shard.append(hashes[new], stored[torch.from_numpy(new)])

    @contextmanager
    def writing(self, number: int, wait_seconds: float = LOCK_SECONDS) -> Iterator[Shard]:
        """Be the only writer of a shard; the lock is freed when the process that holds it ends."""
        shard = self._all()[number]
        try:
            with shard.lock.acquire(timeout=wait_seconds):
                for left in self.path.glob(f".{number:03d}.*.tmp"):  # by a writer that was killed
                    left.unlink()
                yield shard.refresh()
        except Timeout as error:
            raise ValueError(
                f"shard {number} of {self.path} is being written by another process; wait for it, "
                f"or stop it"
            ) from error

    def rows(self, texts: Sequence[str], missing_ok: bool = False) -> Array:
        """Row of each text, int64 ``(n,)``.

        Args:
            texts: Texts.
            missing_ok: Return -1 for a text without a vector. If False, such texts are an error,
                which counts them and shows the first three.
        """
        rows = self.find(hash_texts(texts))
        if not missing_ok and (rows < 0).any():
            absent = [texts[index][:80] for index in np.flatnonzero(rows < 0)[:3]]
            raise KeyError(
                f"{int((rows < 0).sum())} of {len(texts)} texts have no vector in the store "
                f"({self._key.teacher}, prompt {self._key.prompt!r}), such as {absent}; fill it "
                f"with st_jv5.teacher.fill"
            )
        return rows

    def find(self, hashes: Array) -> Array:
        """:meth:`rows` for what :func:`hash_texts` gave; -1 where it is not there."""
        shards = self._all()
        numbers = shard_of(hashes, len(shards))
        found = np.full(len(hashes), -1, dtype=np.int64)
        for shard, places in by_shard(numbers, shards):
            index = shard.refresh().find(hashes[places])
            found[places] = np.where(index < 0, -1, index * len(shards) + shard.number)
        return found

    def gather(
        self,
        rows: Array | Tensor | Sequence[int],
        *,
        missing_ok: bool = False,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> Tensor:
        """Vectors of rows, in the space's dtype.

        Args:
            rows: int, of any shape ``(...)``.
            missing_ok: Return NaN for a row of -1. If False, it is an error.
            device: Device of the result; None is the CPU. To a CUDA device vectors are copied
                through pinned memory, without waiting for the copy.
            pin_memory: Return vectors in pinned memory (needs CUDA).

        Returns:
            ``(..., dim)``.
        """
        rows = as_rows(rows)
        flat = rows.reshape(-1)
        to_cuda = device is not None and torch.device(device).type == "cuda"
        shape, pinned = (rows.size, self.dim), pin_memory or to_cuda
        out = torch.empty(shape, dtype=DTYPES[self._key.dtype], pin_memory=pinned)
        if missing_ok and (flat < 0).any():
            there = torch.from_numpy(np.flatnonzero(flat >= 0))
            out.fill_(torch.nan)
            out[there] = self.gather(flat[there])
        else:
            shards = self._all()
            index, numbers = np.divmod(flat, len(shards))
            self._require(flat, index, numbers)
            raw = out.view(torch.uint16 if out.dtype.itemsize == 2 else torch.float32).numpy()
            for shard, places in by_shard(numbers, shards):
                raw[places] = shard.vectors[index[places]]
        return out.view(*rows.shape, self.dim).to(device, non_blocking=to_cuda)

    def hashes_of(self, rows: Array) -> Array:
        """Hash of each row's text, uint8 ``(n, 16)`` for ``n`` rows of any shape; zeros for -1."""
        asked, shards = rows.reshape(-1), self._all()
        out = np.zeros((len(asked), HASH_BYTES), dtype=np.uint8)
        there = np.flatnonzero(asked >= 0)
        index, numbers = np.divmod(asked[there], len(shards))
        self._require(asked[there], index, numbers)
        for shard, places in by_shard(numbers, shards):
            out[there[places]] = shard.hashes[index[places]]
        return out

    def _require(self, rows: Array, index: Array, numbers: Array) -> None:
        shards = self._all()
        for refresh in (True, False):
            counts = np.array([shard.rows for shard in shards])
            beyond = (rows < 0) | (index >= counts[numbers])
            if not beyond.any():
                return
            if refresh:
                len(self)  # another process may have added them
        raise IndexError(
            f"{int(beyond.sum())} of {rows.size} rows are not in {self.path} ({len(self)} rows, "
            f"{len(shards)} shards), such as {int(rows[beyond][0])}; rows of another store, or -1?"
        )

    def state(self) -> list[Any]:
        """What differs once rows are added or the space is written again, as JSON."""
        found: list[Any] = [str(self.path)]
        for shard in self._all():
            path = shard.refresh().paths["hashes"]
            found.append([shard.rows, path.stat().st_mtime_ns if path.exists() else 0])
        return found

    def hashes(self) -> Iterator[tuple[Array, Array]]:
        """Shard by shard: the hashes, uint8 ``(n, 16)``, and their rows, int64 ``(n,)``."""
        shards = self._all()
        for shard in shards:
            if shard.refresh().rows:
                numbers = np.arange(shard.rows, dtype=np.int64) * len(shards) + shard.number
                yield np.asarray(shard.hashes), numbers

    def faults(self) -> list[str]:
        """A line for each file that is damaged; an empty list if the space is whole.

        Every byte is read, as fast as the disk gives it. Shards that older versions wrote have no
        checksums; what they hold is counted by :meth:`unsummed`.
        """
        return [fault for shard in self._all() for fault in shard.refresh().faults()]

    def unsummed(self) -> int:
        """How many vectors lie in shards without checksums."""
        return sum(shard.rows for shard in self._all() if shard.refresh().sums is None)

    def _all(self) -> list[Shard]:
        if self._shards is None:
            path = self.path / "space.json"
            count = read_json(path).get("shards")
            if type(count) is not int or not 1 <= count <= MOST_SHARDS:
                raise ValueError(f"{path}: shards must lie in 1..{MOST_SHARDS}, not {count!r}")
            beyond = self.path / f"{count:03d}.json"
            if beyond.exists():
                raise ValueError(
                    f"{path} tells of {count} shards, but {beyond.name} is there, too; put the "
                    f"right number back"
                )
            self._shards = [
                Shard(self.path, number, self.dim, self._key.dtype, count)
                for number in range(count)
            ]
        return self._shards


def _space(path: Path, described: object) -> Space:
    """A space as its ``space.json`` describes it."""
    types = {field.name: int if field.type == "int" else str for field in fields(Space)}
    if not isinstance(described, dict) or set(described) != set(types):
        raise ValueError(f"{path} must describe its space by {', '.join(sorted(types))}")
    for name, value in described.items():
        if type(value) is not types[name]:
            raise ValueError(f"{path}: {name} must be {types[name].__name__}, not {value!r:.80}")
    if described["dtype"] not in DTYPES or described["dim"] < 1:
        raise ValueError(f"{path}: no vectors can be {described['dim']} {described['dtype']} wide")
    space = Space(**described)
    if space.id != path.parent.name:
        raise ValueError(
            f"{path} describes {space.id}, but its folder is {path.parent.name}: one of them was "
            f"changed; put it back"
        )
    return space


def as_rows(rows: Array | Tensor | Sequence[int]) -> Array:
    """Rows as an int64 array on the CPU."""
    return rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows, dtype=np.int64)
