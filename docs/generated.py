"""The parts of the reference that are made from the code: names, commands, recipe keys."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import re
import textwrap
import typing
from itertools import pairwise
from typing import Any

import st_jv5
from st_jv5.cli import make_parser


def fill_in(app: Any, docname: str, source: list[str]) -> None:
    """Put the generated parts where a page asks for them, as ``@commands@``."""
    for name, make in PARTS.items():
        if f"@{name}@" in source[0]:
            source[0] = source[0].replace(f"@{name}@", make())


# ------------------------------------------------------------------------------------- names


def names() -> str:
    """The public names of ``st_jv5`` itself, each with its home and the first line of its words."""
    lines = []
    for name in sorted(st_jv5.__all__, key=str.lower):
        thing, home = getattr(st_jv5, name), st_jv5._HOMES[name]
        role = "class" if inspect.isclass(thing) else "func"
        about = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
        lines.append(
            f":py:{role}:`st_jv5.{name} <{home}.{name}>`\n{textwrap.indent(about, '    ')}"
        )
    return "\n\n".join(lines)


# ---------------------------------------------------------------------------------- commands


def commands() -> str:
    """Each command: what it does, its usage, its arguments, an example."""
    return "\n\n".join(_command(name, parser) for name, parser in leaves(make_parser()).items())


def leaves(parser: argparse.ArgumentParser, name: str = "st-jv5") -> dict[str, Any]:
    """Whole name -> parser of each command that does something."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return {name: parser}
    found: dict[str, Any] = {}
    for word, inner in groups[0].choices.items():
        found |= leaves(inner, f"{name} {word}")
    return found


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    about = " ".join((parser.description or "").split())
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    _, _, example = (parser.epilog or "").partition("example:\n")
    rows = [_argument(action) for action in parser._actions if action.dest != "help"]
    return "\n\n".join(
        [
            f".. _{name.replace(' ', '-')}:",
            _title(name, "-"),
            _escaped(about),
            _code(textwrap.dedent(example)),
            _code("\n    ".join(textwrap.wrap(usage, 100, break_on_hyphens=False))),
            *rows,
        ]
    )


def _argument(action: argparse.Action) -> str:
    shown = action.metavar or action.dest
    shown = shown if isinstance(shown, str) else " ".join(shown)
    shown = shown if action.metavar else shown.upper()
    if action.choices:
        shown = "{" + ",".join(map(str, action.choices)) + "}"
    value = "" if action.nargs == 0 else f" {shown}"
    term = ", ".join(f"{option}{value}" for option in action.option_strings) or shown.lower()
    about = (action.help or "").replace("%%", "%")
    default = action.default not in (None, False, "", [], argparse.SUPPRESS)
    if default and "default" not in about and action.option_strings:
        given = action.default
        about += f"; default {' '.join(map(str, given)) if isinstance(given, list) else given}"
    about = f"{about}; required" if action.required and action.option_strings else about
    return f"``{term}``\n    {_escaped(about)}"


# ------------------------------------------------------------------------------- recipe keys


def recipe_keys() -> str:
    """Every key of a recipe, by section: its type, its default, what it is."""
    from st_jv5.recipe import config

    return "\n\n".join(_section(getattr(config, name), path) for name, path in SECTIONS.items())


SECTIONS = {
    "Recipe": "The recipe",
    "Teacher": "teacher",
    "Endpoint": "teacher.endpoint",
    "Student": "student",
    "DataSet": "data_sets.NAME",
    "Phase": "stage1, long, adapters.TASK",
    "AdapterPhase": "adapters.TASK",
    "Evaluation": "evaluation",
}
"""Dataclass of ``st_jv5.recipe.config`` -> where its keys stand in a recipe."""


def _section(cls: Any, path: str) -> str:
    bases = filter(dataclasses.is_dataclass, cls.__mro__[1:])
    inherited = {field.name for base in bases for field in dataclasses.fields(base)}
    words, hints = field_words(cls), typing.get_type_hints(cls)
    parts = [_title(path, "-"), _escaped(inspect.getdoc(cls) or "")]
    for field in dataclasses.fields(cls):
        if field.name not in inherited | INTERNAL:
            kind = _kind(hints[field.name])
            about = words[field.name] or f"See {kind}."
            parts.append(f"``{field.name}`` ({kind}{_default(field)})\n    {about}")
    return "\n\n".join(parts)


INTERNAL = {"folder"}
"""Fields that the loader sets; a recipe may not."""


def field_words(cls: Any) -> dict[str, str]:
    """The strings under the fields of a dataclass; empty for a field without one."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {field.name: "" for field in dataclasses.fields(cls)}
    for statement, after in pairwise(tree.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            found[ast.unparse(statement.target)] = " ".join(ast.literal_eval(after.value).split())
    return found


PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "none"}


def _kind(hint: Any) -> str:
    """A type in words of YAML; a group of settings as a link to its section."""
    args = [part for part in typing.get_args(hint) if part is not Ellipsis]
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        path = SECTIONS.get(getattr(hint, "__name__", ""))
        return f"`{path}`_" if path else "a schedule"
    if origin is typing.Literal:
        return " | ".join(f"``{choice or '(empty)'}``" for choice in args)
    if origin is dict:
        return f"map of {_kind(args[1])}"
    if origin is tuple:
        return f"list of {_kind(args[0])}"
    return PLAIN[hint] if hint in PLAIN else " or ".join(map(_kind, args))


def _default(field: Any) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return ", required"
    return "" if dataclasses.is_dataclass(value) else f"; default ``{json.dumps(value)}``"


# --------------------------------------------------------------------------------------- RST


def _title(text: str, under: str) -> str:
    return f"{text}\n{under * len(text)}"


def _code(text: str, language: str = "text") -> str:
    return f".. code-block:: {language}\n\n{textwrap.indent(text.strip(), '    ')}"


def _escaped(text: str) -> str:
    return re.sub(r"([*`|_\\])", r"\\\1", text)


PARTS = {"names": names, "commands": commands, "recipe_keys": recipe_keys}
"""What a page may ask for."""
