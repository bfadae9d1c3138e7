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


def belong(module: Any, model: Any) -> None:
    """Make a module the model's own: ``module._model`` leads to it.

    A module that another model has already stays that one's; this model gets a copy that shares
    all weights with it.
    """
    owner = module._model()
    if owner is None or owner is model:
        module._model = Owner(model)
        return
    for name, own in model._modules.items():
        if own is module:
            model._modules[name] = sharing(module, _model=Owner(model))


def sharing(module: Any, **attributes: Any) -> Any:
    """A module that shares everything with this one but a few attributes."""
    other = object.__new__(type(module))
    other.__dict__ = {**module.__dict__, **attributes}
    return other
