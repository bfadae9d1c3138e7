"""The rules that concern more than one setting of a recipe."""

from __future__ import annotations

from st_jv5.recipe.config import LABELLED, PAIRED, ROLES, Phase, Recipe, Teacher, is_negative
from st_jv5.recipe.strict import RecipeError
from st_jv5.task_table import TASKS


def check(recipe: Recipe) -> None:
    """The rules that concern more than one setting."""
    if unknown := set(recipe.adapters) - set(TASKS):
        raise RecipeError(f"adapters: unknown task {min(unknown)!r}; known: {', '.join(TASKS)}")
    if recipe.loader_workers < 0:
        raise RecipeError(f"loader_workers must not be negative, but is {recipe.loader_workers}")
    teachers = {"teacher": recipe.teacher}
    teachers |= {f"more_teachers[{i}]": one for i, one in enumerate(recipe.more_teachers)}
    for path, teacher in teachers.items():
        for setting in ("weight", "max_tokens", "shards"):
            if getattr(teacher, setting) <= 0:
                raise RecipeError(
                    f"{path}.{setting} must be above 0, not {getattr(teacher, setting)}"
                )
    for path, phase in recipe.phases.items():
        if recipe.compile and phase.gradient_checkpointing:
            raise RecipeError(
                f"compile does not go with {path}.gradient_checkpointing; {path}.loss's "
                f"mini_batch_tokens saves memory, too"
            )
        for part in ("data", "replay"):
            for name, weight in getattr(phase, part).items():
                if name not in recipe.data_sets:
                    raise RecipeError(
                        f"{path}.{part}: unknown data set {name!r}; known: "
                        f"{', '.join(recipe.data_sets)}"
                    )
                if weight <= 0:
                    raise RecipeError(
                        f"{path}.{part}.{name}: the weight must be above 0, not {weight}"
                    )
        for name in phase.replay:
            if name in phase.data:
                raise RecipeError(f"{path}.replay.{name}: {path}.data has it already")
            if recipe.data_sets[name].kind == "synset_pairs":
                raise RecipeError(
                    f"{path}.replay.{name}: synset_pairs names no columns to replay; make the set "
                    f"of kind texts"
                )
        if not phase.data:
            raise RecipeError(f"{path}.data names no data set")
        _check_labelled(recipe, path, phase)
        for setting in ("batch_sizes", "max_tokens"):
            for name, number in getattr(phase, setting).items():
                if name not in phase.mix:
                    also = f", nor has {path}.replay" if phase.replay else ""
                    raise RecipeError(f"{path}.{setting}: {path}.data has no {name!r}{also}")
                if number < 1:
                    raise RecipeError(f"{path}.{setting}.{name} must be above 0, not {number}")
        settings = ("steps", "batch_size", "devices", "learning_rate", "checkpoint_steps", "theta",
                    "temperature", "temperature_rate", "max_epochs", "replay_weight")  # fmt: skip
        for setting in settings:
            if (getattr(phase, setting) or 0) <= 0 and getattr(phase, setting) is not None:
                raise RecipeError(
                    f"{path}.{setting} must be above 0, not {getattr(phase, setting)}"
                )
        _check_teacher_prompts(recipe, path, phase, teachers)
        dims = recipe.student.matryoshka_dims
        if phase.dim_weights and len(phase.dim_weights) != len(dims):
            raise RecipeError(
                f"{path}.dim_weights has {len(phase.dim_weights)} entries for {len(dims)} "
                f"student.matryoshka_dims"
            )
        if recipe.student.rotate and phase.own_map_dims:
            raise RecipeError(
                f"student.rotate: {path}.own_map_dims has maps for cut vectors, which a "
                f"rotation would mix; leave one of the two out"
            )
        for strength in getattr(phase, "strengths", ()):
            if not strength >= 0:
                raise RecipeError(f"{path}.strengths must be 0 or more, not {strength}")
        if getattr(phase, "strengths", None) == ():
            raise RecipeError(f"{path}.strengths is empty; [1.0] takes the adapter as it is")
        for step in getattr(phase, "average", ()):
            if step % phase.checkpoint_steps or not 0 < step < phase.steps:
                raise RecipeError(
                    f"{path}.average: step {step} has no checkpoint; there is one every "
                    f"{phase.checkpoint_steps} steps up to {phase.steps}"
                )
    for name, weights in recipe.evaluation.blends.items():
        if not weights or (unknown := set(weights) - set(recipe.adapters)):
            raise RecipeError(
                f"evaluation.blends.{name}: "
                + (f"unknown adapter {min(unknown)!r}" if weights else "names no adapter")
                + f"; known: {', '.join(recipe.adapters)}"
            )
    for share in recipe.keep or ():
        if not 0 <= share < 1:
            raise RecipeError(f"keep must lie in 0..1, below 1, not {share}")
    if recipe.keep == ():
        raise RecipeError("keep is empty; [0] keeps nothing of the start")
    for name in recipe.student.vocabulary:
        if name not in recipe.data_sets:
            raise RecipeError(f"student.vocabulary: unknown data set {name!r}")
    for name, data_set in recipe.data_sets.items():
        wanted = ROLES[data_set.kind]
        named = {role for role in data_set.columns if not is_negative(role)}
        if named != wanted or (named != {*data_set.columns} and data_set.kind != "pairs"):
            raise RecipeError(
                f"data_sets.{name}.columns must name {', '.join(sorted(wanted)) or 'nothing'} for "
                f"kind {data_set.kind}, not {', '.join(data_set.columns)}"
            )
        if named != {*data_set.columns} and data_set.negatives:
            raise RecipeError(f"data_sets.{name} has negatives of its own; leave `negatives` out")
        for role in data_set.tokens:
            if role not in wanted - {"label", "score"}:
                raise RecipeError(f"data_sets.{name}.tokens: no texts in {role!r}")


def _check_labelled(recipe: Recipe, path: str, phase: Phase) -> None:
    """Labelled texts stand where a loss reads labels; elsewhere they would train nothing."""
    terms = [phase.loss.get(f"{term}_weight") for term in ("infonce", "rkd")]
    reads = path == "adapters.classification" or (path == "adapters.clustering" and any(terms))
    for name in phase.data:
        if not reads and recipe.data_sets[name].kind in LABELLED:
            raise RecipeError(
                f"{path}.data.{name}: this phase's loss reads no labels; replay its texts "
                f"({path}.replay), or in clustering give {path}.loss an infonce_weight"
            )


def _check_teacher_prompts(
    recipe: Recipe, path: str, phase: Phase, teachers: dict[str, Teacher]
) -> None:
    roles = ("query", "positive", "text")
    for role, name in phase.teacher_prompts.items():
        if role not in roles:
            raise RecipeError(
                f"{path}.teacher_prompts: unknown role {role!r}; known: {', '.join(roles)}"
            )
        for owner, teacher in teachers.items():
            if name not in teacher.prompts:
                raise RecipeError(
                    f"{path}.teacher_prompts.{role}: {owner}.prompts has no {name!r}; it has: "
                    f"{', '.join(teacher.prompts) or 'none'}"
                )
    kinds = {recipe.data_sets[name].kind for name in phase.data}
    first = {phase.teacher_prompts.get(role) for role in ("query", "text")}
    if kinds & PAIRED and kinds & {"texts", *LABELLED} and len(first) > 1:
        raise RecipeError(
            f"{path}.teacher_prompts: pairs and single texts in one phase need the same prompt for "
            f"query and text, the first columns"
        )
