"""Several spaces read as one: a space per column, or the vectors of several teachers in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from st_jv5.teacher.shard import DTYPES, Array
from st_jv5.teacher.store import TeacherStore, as_rows
from st_jv5.vector_source import Vectors


class SeveralTeachers:
    """A view of several teachers' spaces: their unit vectors, weighted and joined side by side.

    Teacher ``k``'s unit vector is multiplied by ``sqrt(weight_k / sum of weights)``: the joined
    vector has unit length, and the cosine of two texts is the weighted mean of the teachers'
    cosines (our choice; the paper has one teacher). Row numbers are those of the first store.

    Args:
        stores: One space per teacher; a text must have a vector in all of them.
        weights: One positive weight per teacher; None gives all the same weight.

    Example:
        >>> both = SeveralTeachers([store, store], weights=[3, 1])
        >>> vectors = both.gather(both.rows(texts[:5]))
        >>> vectors.shape, round(vectors.float().norm(dim=1).mean().item(), 2)
        (torch.Size([5, 768]), 1.0)
    """

    def __init__(
        self, stores: Sequence[TeacherStore], weights: Sequence[float] | None = None
    ) -> None:
        weights = [1.0] * len(stores) if weights is None else list(weights)
        if not stores:
            raise ValueError("several teachers need at least one store, got none")
        if len(weights) != len(stores):
            raise ValueError(f"{len(stores)} stores need as many weights, got {len(weights)}")
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"weights must be finite and above 0, not {weights}")
        self.stores = list(stores)
        self.weights = weights
        self.dtype = reduce(torch.promote_types, [DTYPES[s.describe()["dtype"]] for s in stores])

    @property
    def dim(self) -> int:
        """Sum of the teachers' widths."""
        return sum(store.dim for store in self.stores)

    def describe(self) -> dict[str, Any]:
        """The teachers' spaces, first to last, and their weights."""
        return {
            "teachers": [store.describe() for store in self.stores],
            "teacher_weights": self.weights,
        }

    def rows(self, texts: Sequence[str], missing_ok: bool = False) -> Array:
        """Like :meth:`TeacherStore.rows`; a text that one store lacks is missing."""
        return _of_all([store.rows(texts, missing_ok) for store in self.stores])

    def find(self, hashes: Array) -> Array:
        """Like :meth:`TeacherStore.find`; a text that one store lacks is missing."""
        return _of_all([store.find(hashes) for store in self.stores])

    def state(self) -> list[Any]:
        """As :meth:`TeacherStore.state`, of each store."""
        return [store.state() for store in self.stores]

    def gather(
        self,
        rows: Array | Tensor | Sequence[int],
        *,
        missing_ok: bool = False,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> Tensor:
        """As :meth:`TeacherStore.gather`, ``(..., dim)``."""
        first = self.stores[0]
        rows = as_rows(rows)
        total = sum(self.weights)
        parts = []
        for store, weight in zip(self.stores, self.weights, strict=True):
            own = rows if store is first else store.find(first.hashes_of(rows)).reshape(rows.shape)
            part = store.gather(own, missing_ok=missing_ok, device=device, pin_memory=pin_memory)
            parts.append(normalize(part.float(), dim=-1) * math.sqrt(weight / total))
        return torch.cat(parts, dim=-1).to(self.dtype)


def _of_all(found: Sequence[Array]) -> Array:
    """The first store's rows, -1 where any store has none."""
    return np.where(np.min(found, axis=0) < 0, -1, found[0])


class ColumnStores:
    """A view with one space per text column, such as queries with a prompt and documents without.

    Labels ``(B, C)`` hold rows of the first store in their first column, rows of the second store
    in their second column, and so on. Look up the rows of a column's texts in that column's store.

    Args:
        stores: One space per column, all of the same width.

    Example:
        >>> columns = ColumnStores([store, store])
        >>> labels = np.stack([one.rows(texts[:3]) for one in columns.stores], axis=1)
        >>> columns.gather(labels).shape
        torch.Size([3, 2, 384])
    """

    def __init__(self, stores: Sequence[Vectors]) -> None:
        if not stores:
            raise ValueError("column stores need at least one store, got none")
        if len({store.dim for store in stores}) > 1:
            raise ValueError(
                f"the columns' vectors must be of one width, not {[s.dim for s in stores]}"
            )
        self.stores = list(stores)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.stores[0].dim

    def describe(self) -> dict[str, Any]:
        """The columns' spaces, where they differ."""
        told = [store.describe() for store in self.stores]
        return told[0] if all(one == told[0] for one in told) else {"columns": told}

    def gather(
        self,
        rows: Array | Tensor | Sequence[int],
        *,
        missing_ok: bool = False,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> Tensor:
        """Vectors of rows ``(..., C)``: ``(..., C, dim)``."""
        rows = as_rows(rows)
        if rows.ndim < 1 or rows.shape[-1] > len(self.stores):
            raise ValueError(
                f"rows {rows.shape} name more columns than there are stores ({len(self.stores)})"
            )
        parts = [
            store.gather(
                rows[..., column], missing_ok=missing_ok, device=device, pin_memory=pin_memory
            )
            for column, store in enumerate(self.stores[: rows.shape[-1]])
        ]
        return torch.stack(parts, dim=-2)
