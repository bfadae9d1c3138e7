"""A folder of teacher vectors, found by the text that they embed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_jv5.files import read_json, write_json

HASH_BYTES = 16
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Space:
    """What vectors must share to be comparable; another prompt or revision is another space."""

    teacher: str
    """Name of the teacher model."""
    revision: str
    """Its revision, or "" where it has none."""
    prompt: str
    """The text put before each text."""
    max_tokens: int
    """Where the teacher cuts its input."""
    dim: int
    """Width of its vectors."""
    dtype: str = "float16"
    """How vectors are kept: float16, float32 or bfloat16."""


class TeacherStore:
    """Teacher vectors on disk, one memory map per space, deduplicated by text.

    A space is a folder of three files: ``space.json`` says what it holds, ``vectors`` is the raw
    ``(n, dim)`` matrix, ``hashes`` the 16-byte hash of each row's text. Rows are only appended:
    vectors first, their hashes after, so a row without its hash (a kill between the two) does not
    exist, and the next writer overwrites it. Many may read while one writes.

    Example:
        >>> store = TeacherStore.open(folder, create=True).space("my-teacher", dim=2)
        >>> store.add(["a cat", "a dog"], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> store.gather(store.rows(["a dog"])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, folder: Path, key: Space | None = None) -> None:
        self.folder = folder
        self.key = key
        self._vectors: np.ndarray[Any, Any] | None = None
        self._index: tuple[np.ndarray[Any, Any], ...] | None = None

    @classmethod
    def open(cls, folder: str | Path, create: bool = False) -> TeacherStore:
        """Open a store.

        Args:
            folder: Where it lies.
            create: Make an empty one if there is none; otherwise that is an error.
        """
        folder = Path(folder)
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise FileNotFoundError(f"no teacher store at {folder}; pass create=True to start one")
        return cls(folder)

    def spaces(self) -> list[Space]:
        """All spaces of the store."""
        return [
            Space(**read_json(path)["space"]) for path in sorted(self.folder.glob("*/space.json"))
        ]

    def space(
        self,
        teacher: str,
        revision: str = "",
        prompt: str = "",
        max_tokens: int = 512,
        dim: int | None = None,
        dtype: str = "float16",
    ) -> TeacherStore:
        """The store's view of one space, made if it is new (then ``dim`` is needed)."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        asked = Space(teacher, revision, prompt, max_tokens, dim or 0, dtype)
        for known in self.spaces():
            if known == replace(asked, dim=known.dim) and dim in (None, known.dim):
                return TeacherStore(self.folder, known)
        if dim is None:
            raise ValueError(f"{asked} is not in {self.folder}; pass dim= to start it")
        if dim < 1:
            raise ValueError(f"dim must be positive, not {dim}")
        view = TeacherStore(self.folder, asked)
        write_json(view._path / "space.json", {"space": asdict(asked)})
        return view

    # -------------------------------------------------------------------- one space from here on

    @property
    def _key(self) -> Space:
        if self.key is None:
            raise ValueError("choose a space first: store = store.space(teacher, ...)")
        return self.key

    @property
    def _path(self) -> Path:
        text = json.dumps(asdict(self._key), sort_keys=True)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Number of vectors in the space."""
        path = self._path / "hashes"
        return path.stat().st_size // HASH_BYTES if path.exists() else 0

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._key.dim

    def describe(self) -> dict[str, Any]:
        """The space as JSON; what a projection that is trained on it says of its teacher."""
        return asdict(self._key)

    def add(self, texts: Sequence[str], vectors: np.ndarray[Any, Any] | Tensor) -> None:
        """Append vectors of texts; texts that are in the space already are skipped.

        Args:
            texts: ``n`` texts.
            vectors: ``(n, dim)``.

        Raises:
            ValueError: The shape is wrong, or a vector has a NaN or is zero; names the text.
        """
        vectors = torch.as_tensor(
            np.asarray(vectors) if not isinstance(vectors, Tensor) else vectors
        )
        if tuple(vectors.shape) != (len(texts), self.dim):
            raise ValueError(
                f"{len(texts)} texts need vectors of shape ({len(texts)}, {self.dim}), "
                f"not {tuple(vectors.shape)}"
            )
        stored = vectors.detach().cpu().to(DTYPES[self._key.dtype])
        broken = ~torch.isfinite(stored).all(dim=1) | (stored == 0).all(dim=1)
        if broken.any():
            index = int(broken.nonzero()[0])
            raise ValueError(
                f"the vector of text {index} is NaN, infinite or zero as {self._key.dtype}: "
                f"{texts[index][:200]!r}"
            )
        new = np.flatnonzero(self.rows(texts, missing_ok=True) < 0)
        hashes = _hash(texts)
        _, first = np.unique(hashes[new], axis=0, return_index=True)
        new = new[np.sort(first)]
        if not len(new):
            return
        raw = stored[torch.from_numpy(new)].contiguous().view(torch.uint8).numpy()
        count = len(self)
        for name, row_bytes, data in (  # the hashes last: they make the rows exist
            ("vectors", self.dim * stored.element_size(), raw),
            ("hashes", HASH_BYTES, hashes[new]),
        ):
            with (self._path / name).open("ab") as file:
                file.truncate(count * row_bytes)  # what a killed writer left behind
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
        self._vectors = self._index = None

    def rows(self, texts: Sequence[str], missing_ok: bool = False) -> np.ndarray[Any, Any]:
        """Row of each text, int64 ``(n,)``.

        Args:
            texts: Texts.
            missing_ok: Give -1 for a text that is not there; otherwise that is an error, which
                counts them and shows the first three.
        """
        high, low, order = self._sorted_hashes()
        asked = _hash(texts).view(">u8").reshape(-1, 2)
        if not len(order):
            found = np.full(len(texts), -1, dtype=np.int64)
        else:
            place = np.minimum(np.searchsorted(high, asked[:, 0]), len(order) - 1)
            same = (high[place] == asked[:, 0]) & (low[place] == asked[:, 1])
            found = np.where(same, order[place], -1).astype(np.int64)
        if not missing_ok and (found < 0).any():
            absent = [texts[index][:80] for index in np.flatnonzero(found < 0)[:3]]
            raise KeyError(
                f"{int((found < 0).sum())} of {len(texts)} texts have no vector in the store "
                f"({self._key.teacher}, prompt {self._key.prompt!r}), such as {absent}; fill it "
                f"with st_jv5.teacher.fill"
            )
        return found

    def gather(self, rows: np.ndarray[Any, Any] | Tensor | Sequence[int]) -> Tensor:
        """Vectors of rows, in the space's dtype.

        Args:
            rows: int, of any shape ``(...)``.

        Returns:
            ``(..., dim)``.
        """
        rows = np.asarray(rows)
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(
                f"rows must lie in 0..{len(self) - 1}, got {int(rows.min())}..{int(rows.max())}"
            )
        if self._vectors is None:
            dtype = np.float32 if self._key.dtype == "float32" else np.uint16
            path, shape = self._path / "vectors", (len(self), self.dim)
            self._vectors = np.memmap(path, dtype=dtype, mode="r", shape=shape)
        taken = torch.from_numpy(np.take(self._vectors, rows, axis=0))
        return taken.view(DTYPES[self._key.dtype])

    def _sorted_hashes(self) -> tuple[np.ndarray[Any, Any], ...]:
        if self._index is None:
            path = self._path / "hashes"
            count = len(self)
            raw = np.fromfile(path, dtype=">u8", count=2 * count) if count else np.empty(0, ">u8")
            pairs = raw.reshape(-1, 2)
            order = np.argsort(pairs[:, 0], kind="stable")
            self._index = (pairs[order, 0], pairs[order, 1], order)
        return self._index


def _hash(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """16 bytes per text, uint8 ``(n, 16)``."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts must be str, but text {index} is {text!r}")
    digests = b"".join(
        hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest() for text in texts
    )
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, HASH_BYTES)
