"""Plain YAML becomes frozen dataclasses, strictly: what is not known, missing or of another type is
an error that names the setting."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe that cannot be run, and why."""


def build(kind: type[T], tree: Any, path: str) -> T:
    """Build a dataclass from plain YAML, strictly."""
    if not isinstance(tree, dict):
        raise RecipeError(f"{path or 'the recipe'} must be a group of settings, not {tree!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}"
            raise RecipeError(f"unknown setting {_join(path, key)}{hint}")
    hints = typing.get_type_hints(kind)
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and (
            spec.default_factory is dataclasses.MISSING
        )
        if required and name not in tree:
            raise RecipeError(f"{_join(path, name)} is missing")
    values = {key: _value(hints[key], value, _join(path, key)) for key, value in tree.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _value(kind: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, path)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if dataclasses.is_dataclass(option) and isinstance(value, dict):
                return _value(option, value, path)
            try:
                return _value(option, value, path)
            except RecipeError:
                continue
    elif origin is Literal:
        if value in args:
            return value
        raise RecipeError(f"{path} must be one of {', '.join(map(str, args))}, not {value!r}")
    elif origin is dict and isinstance(value, dict):
        return {str(k): _value(args[1], v, _join(path, k)) for k, v in value.items()}
    elif origin is tuple and isinstance(value, list):
        return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    elif kind is types.NoneType and value is None:
        return None
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    hint = ""
    if isinstance(value, str) and _is_number(value):
        hint = f"; YAML reads {value} as text, write it with a dot: 1.0e-4"
    raise RecipeError(f"{path} must be {name}, not {value!r}{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
