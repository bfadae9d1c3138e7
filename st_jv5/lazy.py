"""A package whose names are imported when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that imports a public name from its home, or a submodule, at the first use.

    The functions of PEP 562 would not do: a submodule of a public name (``st_jv5.tasks``) is set as
    an attribute of the package when it is imported, and would hide the name.
    """

    homes: Mapping[str, str]
    """Public name -> module that defines it."""

    def __getattr__(self, name: str) -> Any:
        if name in self.homes:
            value = getattr(import_module(self.homes[name]), name)
        elif not name.startswith("_") and find_spec(f"{self.__name__}.{name}") is not None:
            value = import_module(f"{self.__name__}.{name}")
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.homes):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.homes})


def make_lazy(package: str, names: Mapping[str, Sequence[str]]) -> None:
    """Make a package lazy.

    Args:
        package: Its name; it is being imported.
        names: Module, below the package -> the public names that it defines.
    """
    module = sys.modules[package]
    module.__class__ = LazyPackage
    module.__dict__["homes"] = {
        name: f"{package}.{home}" for home, own in names.items() for name in own
    }


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
