"""What each way of keeping what a student knows brings, alone and together, near and far.

    python -m eval.studies.levers                     # eval/studies/levers.yaml, into out/levers
    python -m eval.studies.levers --only all --seeds 0 --set teacher.model=PATH

Stage 1 of a recipe is trained at a fraction of its steps, once for each arm and seed, and scored on
the validation split: as training left it, and halfway back to the start. An arm that is scored is
not trained again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from sentence_transformers import SentenceTransformer

from st_jv5 import cli
from st_jv5.evaluation.page import Cell, Table
from st_jv5.files import read_json, write_json
from st_jv5.recipe.config import fingerprint
from st_jv5.recipe.context import Run
from st_jv5.recipe.done import save_whole
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.results.measure import validation_means
from st_jv5.recipe.run import upstream
from st_jv5.recipe.strict import RecipeError, build
from st_jv5.recipe.train import train
from st_jv5.student import interpolate
from st_jv5.task_table import BASE

START, ALL = "start", "all"
"""The arm that trains nothing, and the recipe as it is."""


@dataclass(frozen=True)
class Levers:
    """The whole of levers.yaml."""

    recipe: str
    """Relative to the checkout."""
    before: tuple[str, ...]
    """``a.b=value`` that take the recipe back to how it was."""
    arms: dict[str, tuple[str, ...]]
    """Name -> ``a.b=value`` on top of ``before``."""
    fraction: float = 0.2
    """Share of stage 1's steps that an arm trains."""
    seeds: tuple[int, ...] = (0, 1)
    keep: tuple[float, ...] = (0.0, 0.5)
    """How much of the start stays, scored in turn."""

    @property
    def names(self) -> list[str]:
        """The names of all arms."""
        return [START, *self.arms, ALL]

    def changes(self, arm: str) -> tuple[str, ...]:
        """What an arm sets on top of the recipe."""
        return () if arm in (START, ALL) else (*self.before, *self.arms[arm])


def result(output: Path, arm: str, seed: int) -> Path:
    """The scores of one arm; what it trained lies beside them."""
    return output / f"{arm.replace(' ', '-')}-seed{seed}.json"


def score(levers: Levers, arm: str, seed: int, output: Path, overrides: Sequence[str]) -> None:
    """Train and score one arm, unless its JSON is there."""
    folder = result(output, arm, seed).with_suffix("")
    own = [f"output={output}", f"seed={seed}"]
    changes = levers.changes(arm)
    run = Run(load_recipe(levers.recipe, [*own, *changes, *overrides], levers.fraction))
    settings = [upstream(run.recipe), run.recipe.evaluation.tasks, levers.keep]
    made = fingerprint(settings if arm != START else settings[1])
    if (scored := result(output, arm, seed)).exists():
        if read_json(scored)["fingerprint"] != made:
            raise RecipeError(f"{scored} was made with other settings; remove it and {folder}")
        return
    started = time.time()
    if arm == START:
        models = {1.0: run.new_student()}
    else:
        if not (folder / "model").exists():
            student = run.new_student()
            assert run.recipe.stage1 is not None
            train(run, student, BASE, run.recipe.stage1, folder / "checkpoints")
            save_whole(student, folder / "model")
        end = SentenceTransformer(str(folder / "model"))
        models = {
            share: interpolate(run.new_student(), end, 1 - share) if share else end
            for share in levers.keep
        }
    seconds = time.time() - started
    means = {
        f"{share:g}": validation_means(run, model, BASE, folder / f"keep-{share:g}")
        for share, model in models.items()
    }
    write_json(
        folder.with_suffix(".json"),
        {"fingerprint": made, "means": means, "seconds": round(seconds)},
    )


def table(arms: Sequence[str], seeds: Sequence[int], output: Path) -> Table:
    """Near and far means of each arm and share, seed by seed."""
    rows: list[list[Cell]] = []
    for arm in arms:
        files = [result(output, arm, seed) for seed in seeds]
        found = [read_json(path)["means"] for path in files if path.exists()]
        for share in found[0] if found else ():
            cells = [
                " / ".join(f"{means[share][side]:.1f}" for means in found)
                for side in ("near", "far", "both")
            ]
            rows.append([arm, share, *cells])
    return Table(["", "kept of the start", "near", "far", "mean of the two"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--levers", default=str(Path(__file__).parent / "levers.yaml"))
    parser.add_argument("--only", nargs="+", help="these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the file's")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--output", default="out/levers")
    parser.set_defaults(run=run, debug=False, resumes=True)
    cli.run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Run what is asked for, and show it."""
    text = Path(args.levers).read_text(encoding="utf-8")
    levers = build(Levers, yaml.safe_load(text), "")
    arms = args.only or levers.names
    if unknown := [arm for arm in arms if arm not in levers.names]:
        raise RecipeError(f"no arm {unknown[0]!r}; known: {', '.join(levers.names)}")
    seeds = args.seeds or levers.seeds
    for seed in seeds:
        for arm in arms:
            score(levers, arm, seed, Path(args.output), args.set)
    print(table(arms, seeds, Path(args.output)).markdown())


if __name__ == "__main__":
    main()
