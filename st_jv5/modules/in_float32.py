"""Weights that keep their digits in a model of half precision."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class InFloat32:
    """For a module that is moved with its model, but not rounded with it."""

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        def kept(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(kept, *args, **kwargs)  # type: ignore[misc]
