"""Pages and docstrings name files, modules and floors that are there: a move leaves none behind."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

PAGES = (
    *("README.md", "CONTRIBUTING.md", "examples/README.md", "Makefile", ".ci/run"),
    *("MANIFEST.in", "pyproject.toml", "training/data/README.md"),
    *("model_cards/demo.md", "model_cards/laptop.md"),
    *sorted(
        path.relative_to(ROOT).as_posix()
        for pattern in (
            *("docs/**/*.md", "deploy/*", "training/recipes/*.yaml"),
            *("eval/**/*.yaml", "st_jv5/**/*.md"),
        )
        for path in ROOT.glob(pattern)
    ),
)
CODE = ("st_jv5", "training", "eval", "examples", "docs")
"""Folders whose strings are all read; those of tests name what is made up, too."""
PATH = re.compile(
    r"(?<![\w./-])(?:st_jv5|training|eval|tests|model_cards|notes|examples|deploy|docs)/[\w./*-]*\w"
)
MODULE = re.compile(r"(?<![\w./-])(?:st_jv5|training|eval|tests)(?:\.[A-Za-z_]\w*)+")
NO_MODULES = ("st_jv5.json",)
NO_PATHS = ("st_jv5/chance",)
"""The name by which mteb knows random vectors."""


def named_by_pages_and_code() -> Iterator[tuple[str, str]]:
    """(file, text) of each page, of each string in the code, and of each docstring of tests."""
    for page in PAGES:
        yield page, (ROOT / page).read_text(encoding="utf-8")
    yield from strings_of(ROOT / "setup.py")
    for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
        yield from strings_of(path)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != Path(__file__):
            yield from strings_of(path, docstrings=True)


def strings_of(path: Path, docstrings: bool = False) -> Iterator[tuple[str, str]]:
    """A file's strings; or those alone that stand on a line of their own."""
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = node.value if docstrings and isinstance(node, ast.Expr) else node
        alone = isinstance(node, ast.Expr) or not docstrings
        if alone and isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield name, found.value


def is_module(name: str) -> bool:
    """Whether a dotted name leads to a module, and from there to a name that it writes."""
    place = ROOT
    for part in name.split("."):
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            place = place / f"{part}.py"
        else:
            return part in words_of(place if place.is_file() else place / "__init__.py")
    return True


@cache
def words_of(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


def test_every_path_that_is_named_exists():
    lost = [
        f"{file}: {path}"
        for file, text in named_by_pages_and_code()
        for path in PATH.findall(text)
        if path not in NO_PATHS and not list(ROOT.glob(path))
    ]
    assert not lost


def test_every_module_that_is_named_exists():
    lost = [
        f"{file}: {name}"
        for file, text in named_by_pages_and_code()
        for name in MODULE.findall(text)
        if name not in NO_MODULES and not is_module(name)
    ]
    assert not lost


def section(title: str) -> str:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", page, re.S | re.M)
    return text


def test_a_batch_passes_at_most_twelve_files():
    _, picture, _ = section("A batch's way, from parquet to loss").split("```")
    files = PATH.findall(picture)
    assert len(files) == len(set(files)) <= 12
    assert all((ROOT / file).is_file() for file in files)


def test_the_floors_of_the_page_are_those_that_are_held():
    """In their order, but for ``__main__``, which is two lines above the command line."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    held, *_ = settings["tool"]["importlinter"]["contracts"]
    layers = [layer.split(" | ") for layer in held["layers"] if layer != "__main__"]
    rows = re.findall(r"^\| (`.*?) \|", section("The floors"), re.M)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == layers
