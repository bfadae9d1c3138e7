"""Compute the vectors that a recipe asks of its teachers; what is stored is not done again."""

from __future__ import annotations

import logging
from collections import defaultdict

from st_jv5.choices import Engine
from st_jv5.recipe.context import RANK, WORLD_SIZE, Run
from st_jv5.recipe.data.rows import Rows, Texts
from st_jv5.recipe.data.training_sets import teacher_roles
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
