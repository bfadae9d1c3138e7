"""A module's way to the model that it belongs to."""

from __future__ import annotations

import weakref
from typing import Any


class Owner:
    """The model that a module belongs to, not kept alive by it; call it for the model or None.

    A weak reference cannot be pickled. The model is pickled in its place: pickle and deepcopy
    follow the cycle back to the copy of the model that the copied module belongs to.
    """

    def __init__(self, model: Any = None) -> None:
        self._reference = None if model is None else weakref.ref(model)

    def __call__(self) -> Any:
        return self._reference() if self._reference is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]
