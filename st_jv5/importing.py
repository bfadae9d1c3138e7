"""What is done when another package is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def when_imported(package: str, then: Callable[[], None]) -> None:
    """Call ``then`` when a package has been imported: now, if it was."""
    if package in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watch(package, then))


class _Watch:
    """A finder that finds one package as the others do, and is heard of when it is imported."""

    def __init__(self, package: str, then: Callable[[], None]) -> None:
        self.package, self.then = package, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.package or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException:
                sys.meta_path.insert(0, self)  # it may be imported again
                raise
            self.then()

        loader.exec_module = execute_and_tell
        return spec
