"""README and docs/: what stands there runs, is parsed, is complete, and is in plain words."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import st_jv5
from docs import generated
from st_jv5.cli import make_parser
from st_jv5.recipe import config
from st_jv5.recipe.load import load_recipe
from tests.conftest import MINILM, ROOT, with_adapters
from tests.test_examples import PUBLIC

README = ROOT / "README.md"
PAGES = [README, ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""The READMEs and the pages that are written by hand."""

REFERENCE = sorted((ROOT / "docs" / "reference").rglob("*.rst"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's code blocks of these languages."""
    found = re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [code for language, code in found if language in languages]


# --------------------------------------------------------------------------------------- README


def test_readme_has_at_most_150_lines_of_at_most_120_columns():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_every_link_of_readme_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


# ------------------------------------------------------------------------------- blocks that run


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with the models that the pages name: one with adapters, and a stock one."""
    folder = tmp_path_factory.mktemp("models")
    model = with_adapters(st_jv5.new_student(MINILM, layers=[0, 5]))
    model.save_pretrained(str(folder / "demo" / "model"))
    (folder / "stock").mkdir()
    (folder / "stock" / "model").symlink_to(MINILM)
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_every_python_block_of_a_page_runs_after_those_above_it(
    page, models, tmp_path, monkeypatch
):
    (tmp_path / "out").mkdir()
    for model in models.iterdir():
        (tmp_path / "out" / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    space: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), space)


def test_a_block_is_python_shell_yaml_or_said_to_be_text():
    known = {"python", "sh", "yaml", "text", "", "{toctree}", "{include}"}
    for page in PAGES:
        found = re.findall(r"^```(\S*)\n.*?^```$", page.read_text(encoding="utf-8"), re.M | re.S)
        assert set(found) <= known, name_of(page)


def command_lines() -> Iterator[tuple[str, str]]:
    """Page, and each of its command lines that runs ``st-jv5``."""
    for page in PAGES:
        for block in blocks(page, "sh", ""):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\|", line):
                    found = re.search(r"(?:^|\s)(?:st-jv5|-m st_jv5) (.*)", part.split(" #")[0])
                    if found and not part.strip().startswith("#"):
                        yield name_of(page), found[1].strip()


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_every_command_line_of_a_page_is_taken(page, line):
    make_parser().parse_args(shlex.split(line))


def test_every_recipe_of_a_page_loads(tmp_path):
    recipes = [block for page in PAGES for block in blocks(page, "yaml")]
    assert recipes
    for block in recipes:
        (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
        assert load_recipe(tmp_path / "recipe.yaml").name


# ------------------------------------------------------------------------------------ reference


def referred_to() -> list[object]:
    """All that the reference documents by itself."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    found: list[object] = []
    for package in re.findall(r"automodule:: (\S+)", text):
        module = import_module(package)
        found += [getattr(module, name) for name in module.__all__]
    for path in re.findall(r"auto(?:function|class):: (\S+)", text):
        module, _, name = path.rpartition(".")
        found.append(getattr(import_module(module), name))
    return found


def test_the_reference_has_every_public_name():
    found = referred_to()
    missing = [name for name, thing in PUBLIC.items() if not any(thing is one for one in found)]
    assert missing == []


def test_the_reference_has_every_module_with_public_names():
    files = sorted((ROOT / "st_jv5").rglob("*.py"))
    public = [path for path in files if "\n__all__ = " in path.read_text(encoding="utf-8")]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in public
    ]
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    assert {"st_jv5", "st_jv5.losses"} <= {*modules}
    modules.remove("st_jv5")  # whose names are those of the others, in a table
    assert [name for name in modules if f"automodule:: {name}\n" not in text] == []
    assert [name for name in st_jv5.__all__ if f"`st_jv5.{name} <" not in generated.names()] == []


def test_the_reference_has_every_command_and_option():
    assert "@commands@" in (ROOT / "docs/reference/cli.rst").read_text()
    text = generated.commands()
    for name, parser in generated.leaves(make_parser()).items():
        assert f"\n{name}\n" in text
        for action in parser._actions:
            assert action.help, f"{name}: no words on {action.dest}"
            for option in action.option_strings:
                assert f"``{option}" in text or f", {option}" in text or option in ("-h", "--help")


def sections() -> dict[type, None]:
    """The dataclasses that a recipe is made of."""
    found: dict[type, None] = {}
    todo: list[object] = [config.Recipe]
    while todo:
        kind = todo.pop()
        todo += typing.get_args(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
            found[kind] = None
            todo += typing.get_type_hints(kind).values()
    return found


def test_the_reference_has_every_recipe_key_with_words():
    assert "@recipe_keys@" in (ROOT / "docs/reference/recipe-keys.rst").read_text()
    text = generated.recipe_keys()
    ours = [kind for kind in sections() if kind.__module__ == config.__name__]
    assert {kind.__name__ for kind in ours} <= set(generated.SECTIONS)
    for kind in ours:
        for field in dataclasses.fields(kind):
            if field.name not in generated.INTERNAL:
                assert re.search(rf"^``{field.name}`` \(.*\)\n    \S", text, re.M), field.name


# ---------------------------------------------------------------------------------------- words

WORDS = [
    tuple(part.strip() for part in line.split("  ->  "))
    for line in (ROOT / "tests" / "words.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
"""A pattern, and what to write in its place."""


def prose() -> Iterator[tuple[str, str]]:
    """Where it stands, and text that users and contributors read."""
    for page in [*PAGES, *REFERENCE, ROOT / "CONTRIBUTING.md"]:
        yield name_of(page), page.read_text(encoding="utf-8")
    for path in sorted((ROOT / "st_jv5").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if text and isinstance(node.value.value, str):
                yield f"{name_of(path)}:{node.lineno}", node.value.value


def test_pages_and_docstrings_do_without_the_words_of_the_list():
    found = [
        f"{where}: {match[0]!r}; write: {instead}"
        for where, text in prose()
        for pattern, instead in WORDS
        if (match := re.search(pattern, text))
    ]
    assert found == [], "\n".join(found)
