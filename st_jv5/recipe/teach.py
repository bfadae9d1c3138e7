"""Compute the vectors that a recipe's phases ask of its teachers; what is stored is not done again.

python -m training.teach training/recipes/demo.yaml
python -m training.teach RECIPE --engine ray --workers 8      # the workers see the store's folder
torchrun --nproc-per-node 8 -m training.teach RECIPE          # a GPU each, shards of the store
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence

from st_jv5.choices import Engine
from st_jv5.machine.cpu import bound_kernel_cache
from st_jv5.recipe.context import RANK, WORLD_SIZE, Run
from st_jv5.recipe.data.rows import Rows, Texts
from st_jv5.recipe.data.training_sets import teacher_roles
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.strict import RecipeError
from st_jv5.teacher.filling import fill

logger = logging.getLogger("st_jv5.recipe")


def wanted(run: Run) -> dict[str | None, Texts]:
    """Name of the teachers' prompt (None: their ``prompt``) -> the texts to embed behind it."""
    found: dict[str | None, list[tuple[Rows, str]]] = defaultdict(list)
    for phase in run.recipe.phases.values():
        for name in phase.data:
            for role in teacher_roles(run.recipe.data_sets[name], phase.asks_of_labelled):
                found[phase.teacher_prompts.get(role)].append((run.rows[name], role))
        for name in phase.replay:
            rows = run.rows[name]
            found[phase.teacher_prompts.get("text")] += [(rows, role) for role in rows.roles]
    return {prompt: Texts(columns) for prompt, columns in found.items()}


def teach(run: Run, engine: Engine = "local", workers: int | None = None) -> None:
    """Fill the store of every teacher, behind every prompt that a phase names."""
    if not run.teachers:
        logger.info("no teacher: no loss reads its vectors")
        return
    for prompt, texts in wanted(run).items():
        for number, spec in enumerate(run.teachers):
            try:
                computed = fill(
                    run.space(number, prompt),
                    run.source(number),
                    texts,
                    engine=engine,
                    workers=workers,
                    rank=RANK,
                    world_size=WORLD_SIZE,
                )
            except (OSError, ValueError) as error:
                raise RecipeError(f"teacher {spec.model}: {error}") from error
            behind = f" behind its prompt {prompt!r}" if prompt is not None else ""
            logger.info("%s: %d texts%s, %d of them new", spec.model, len(texts), behind, computed)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    bound_kernel_cache()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", help="a YAML file, such as training/recipes/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--workers", type=int, help="of ray; default: one per GPU, two without")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    if args.workers is not None and (args.workers < 1 or args.engine == "local"):
        parser.error("--workers must be positive, and goes with --engine ray")
    try:
        teach(Run(load_recipe(args.recipe, args.set)), args.engine, args.workers)
    except RecipeError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    main()
