"""Read a recipe from YAML: what it extends, what is set over it, a fraction of its steps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from st_jv5.recipe.config import AdapterPhase, Phase, Recipe
from st_jv5.recipe.data.sources import with_columns
from st_jv5.recipe.rules import check
from st_jv5.recipe.strict import RecipeError, build

PhaseT = TypeVar("PhaseT", bound="Phase")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), fraction: float = 1.0) -> Recipe:
    """Read a recipe, with ``a.b=value`` overrides on top, and a fraction of each phase's steps.

    A path that an override names is seen from where the recipe's own are.
    """
    tree, data = _read(Path(path))
    for override in overrides:
        _override(tree, override)
    _see_from(data, tree)
    if tree.get("evaluation") == "none":
        tree["evaluation"] = {"skip": True}
    recipe = _with_columns(build(Recipe, tree, ""))
    check(recipe)
    return recipe if fraction == 1 else _shortened(recipe, fraction)


def _with_columns(recipe: Recipe) -> Recipe:
    """The columns of your own files, where the recipe does not name them."""
    sets = {
        name: spec if spec.columns or spec.kind == "synset_pairs" else with_columns(name, spec)
        for name, spec in recipe.data_sets.items()
    }
    return dataclasses.replace(recipe, data_sets=sets)


def _read(path: Path, from_others: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Path]:
    """A recipe's tree, and what its paths are seen from.

    One that ``extends`` another beside it holds only what differs.

    Data sets learn what their paths are seen from: the folder of the recipe that names them, or
    its ``data_folder``.
    """
    if path in from_others:
        raise RecipeError(f"{path} extends itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} must be a mapping")
    data = path.parent.absolute() / str(tree.pop("data_folder", "."))
    _see_from(data, tree)
    other = tree.pop("extends", None)
    if other is None:
        return tree, data
    under, _ = _read(path.with_name(str(other)), (*from_others, path))
    return _merged(under, tree), data


def _see_from(data: Path, tree: dict[str, Any]) -> None:
    """Tell the data sets that name a path what it is seen from; a whole folder stays."""
    sets = tree.get("data_sets")
    for spec in sets.values() if isinstance(sets, dict) else ():
        if isinstance(spec, dict) and "path" in spec:
            spec["folder"] = os.path.normpath(data / str(spec.get("folder", "")))


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return {**under, **over, **both}


def _shortened(recipe: Recipe, fraction: float) -> Recipe:
    """The same schedule in fewer steps (or more): warm-up, checkpoints and averages move along."""
    if not fraction > 0:
        raise RecipeError(f"the fraction of the steps must be above 0, not {fraction}")

    def phase(whole: PhaseT) -> PhaseT:
        every = max(1, round(fraction * whole.checkpoint_steps))
        changes: dict[str, Any] = {
            "steps": max(1, round(fraction * whole.steps)),
            "warmup_steps": round(fraction * whole.warmup_steps),
            "checkpoint_steps": every,
        }
        if isinstance(whole, AdapterPhase):
            changes["average"] = tuple(s // whole.checkpoint_steps * every for s in whole.average)
        return dataclasses.replace(whole, **changes)

    shorter = dataclasses.replace(
        recipe,
        stage1=recipe.stage1 and phase(recipe.stage1),
        long=recipe.long and phase(recipe.long),
        adapters={task: phase(one) for task, one in recipe.adapters.items()},
    )
    check(shorter)
    return shorter


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set wants a.b=value, got {override!r}")
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"--set {path}: {key} is not a group of settings")
    tree[last] = yaml.safe_load(text)
