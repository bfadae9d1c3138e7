"""What losses and projections read: teacher vectors by row, and the rows by text.

A :class:`~st_jv5.teacher.TeacherStore` is one, and so is every view of several stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class VectorRows(Protocol):
    """Teacher vectors by row: what a loss reads."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def gather(
        self,
        rows: Array | Tensor | Sequence[int],
        *,
        missing_ok: bool = False,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> Tensor:
        """Vectors of rows."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a projection says of its teacher."""
        ...


class Vectors(VectorRows, Protocol):
    """Teacher vectors by row, and the rows by text."""

    def rows(self, texts: Sequence[str], missing_ok: bool = False) -> Array:
        """Row of each text."""
        ...

    def find(self, hashes: Array) -> Array:
        """Row of each text by its hash; -1 where it is not there."""
        ...

    def state(self) -> list[Any]:
        """What differs once rows are added or written again."""
        ...
