"""The recipes that come with the package: listed, and copied to be changed."""

from __future__ import annotations

from pathlib import Path

import yaml

from st_jv5.files import write_text
from st_jv5.task_table import unknown_name

PACKAGED = Path(__file__).parent / "recipes"
CHECKOUT = Path(__file__).parents[2] / "training" / "recipes"


def shipped() -> dict[str, Path]:
    """Name -> file: of the installed package, in a checkout of training/recipes."""
    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def list_recipes() -> list[str]:
    """A line for each recipe: its name, and how it describes itself."""
    found = shipped()
    width = max(map(len, found), default=0)
    return [f"{name:<{width}}  {_about(path)}" for name, path in found.items()]


def copy_recipe(name: str, folder: str | Path) -> list[str]:
    """Copy a recipe, and those that it extends, into a folder.

    Returns:
        A line for each file that was written, and what the recipe needs beside it.

    Raises:
        ValueError: No such recipe, or a file is there already.
    """
    found = shipped()
    if name not in found:
        raise ValueError(unknown_name("recipe", name, found, "this package"))
    names = [name]
    while other := _tree(found[names[-1]]).get("extends"):
        names.append(Path(str(other)).stem)
    places = {one: Path(folder) / found[one].name for one in names}
    if taken := [path for path in places.values() if path.exists()]:
        raise ValueError(f"{taken[0]} is there already; choose another folder with --to")
    lines = []
    for one, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, found[one].read_text(encoding="utf-8"))
        lines.append(str(path))
    if "data_folder" in _tree(found[name]):
        lines.append(
            "its text is in training/data of the repository: set data_folder to a checkout of it"
        )
    return lines


def _tree(path: Path) -> dict[str, object]:
    tree: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def _about(path: Path) -> str:
    """The first sentence of the comment at its top."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    first, dot, _ = " ".join(words).partition(". ")
    return first.rstrip(".") + ("." if dot else "")
