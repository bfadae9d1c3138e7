"""Every phase tried on its first rows before the teacher begins, random vectors in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_jv5.teacher.shard import Array, halves, hash_texts
from st_jv5.teacher.store import as_rows


class RandomVectors:
    """Stands in a teacher store's place: a random vector for any text, the same for equal texts."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def describe(self) -> dict[str, Any]:
        """That there is no teacher."""
        return {"teacher": "none", "dim": self.dim}

    def state(self) -> list[Any]:
        """It never changes."""
        return ["random"]

    def find(self, hashes: Array) -> Array:
        """A number for each text."""
        return (halves(hashes)[0] >> np.uint64(1)).astype(np.int64)

    def rows(self, texts: Sequence[str], missing_ok: bool = False) -> Array:
        """A number for each text."""
        return self.find(hash_texts(texts))

    def gather(
        self,
        rows: Array | Tensor | Sequence[int],
        missing_ok: bool = False,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> Tensor:
        """Vectors that a row's number decides, ``(..., dim)``."""
        rows = as_rows(rows)
        places = np.arange(1, self.dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (rows[..., None].astype(np.uint64) + places) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0x94D049BB133111EB)
        vectors = (mixed >> np.uint64(40)).astype(np.float32) / 2**23 - 1
        return torch.from_numpy(vectors).to(device)
