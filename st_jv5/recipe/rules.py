"""The rules that concern more than one setting of a recipe."""

from __future__ import annotations

from pathlib import Path

from st_jv5.recipe.config import (
    HELD_OUT,
    LABELLED,
    PAIRED,
    SCORED,
    Phase,
    Recipe,
    Student,
    Teacher,
)
from st_jv5.recipe.strict import RecipeError
from st_jv5.roles import ROLES, is_negative
from st_jv5.task_table import TASKS


def check(recipe: Recipe) -> None:
    """The rules that concern more than one setting."""
    if unknown := set(recipe.adapters) - set(TASKS):
        raise RecipeError(f"adapters: unknown task {min(unknown)!r}; known: {', '.join(TASKS)}")
    if recipe.loader_workers < 0:
        raise RecipeError(f"loader_workers must not be negative, but is {recipe.loader_workers}")
    _check_start(recipe)
    teachers = {"teacher": recipe.teacher} if recipe.teacher else {}
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
        _check_kinds(recipe, path, phase)
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
        if teachers:
            _check_teacher_prompts(recipe, path, phase, teachers)
        else:
            _check_without_teacher(recipe, path, phase)
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
        if data_set.held_out < 0:
            raise RecipeError(
                f"data_sets.{name}.held_out must be 0 or more rows, not {data_set.held_out}"
            )
        if not data_set.kind:
            raise RecipeError(
                f"data_sets.{name}.columns has {', '.join(data_set.columns)}, which no kind of "
                f"data set has; the kinds: "
                + "; ".join(f"{kind}: {', '.join(sorted(roles))}"
                            for kind, roles in ROLES.items() if roles)
            )  # fmt: skip
        if data_set.held_out and data_set.kind not in HELD_OUT:
            raise RecipeError(
                f"data_sets.{name}.held_out goes with kind {', '.join(HELD_OUT)}, not "
                f"{data_set.kind}: no task can be made of its rows; leave held_out out"
            )
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


OF_A_BASE = (
    *("layers", "append_eos", "pooling", "prompts", "matryoshka_dims", "vocabulary"),
    "serve_theta",
)
"""Settings of a student that is made of a base; a finished model has made its own choice."""


def _check_start(recipe: Recipe) -> None:
    """A recipe trains a base from stage 1 on, or adapters of a finished model alone."""
    student = recipe.student
    if bool(student.base) == bool(student.model):
        raise RecipeError(
            "student needs either base, which stage1 trains, or model: a finished one, whose "
            f"adapters alone are trained; it has {'both' if student.base else 'neither'}"
        )
    if student.base:
        if recipe.stage1 is None:
            raise RecipeError(
                "stage1 is missing: it trains student.base; to train adapters alone, name a "
                "finished model as student.model instead"
            )
        return
    asked = [name for name in ("stage1", "long", "keep") if getattr(recipe, name) is not None]
    new = Student()
    asked += [f"student.{n}" for n in OF_A_BASE if getattr(student, n) != getattr(new, n)]
    if asked:
        raise RecipeError(
            f"{asked[0]} does not go with student.model, which is taken as it is; leave it out, or "
            f"name student.base to train a base"
        )
    if not recipe.adapters:
        raise RecipeError("adapters is empty, so nothing would be trained on student.model")
    if Path(student.model).resolve() == (recipe.folder / "model").resolve():
        raise RecipeError(
            f"student.model is {student.model}, where the result would go; choose another output"
        )


def _check_without_teacher(recipe: Recipe, path: str, phase: Phase) -> None:
    """Without a teacher there must be no loss that reads its vectors."""
    asks: dict[str, str] = {}
    if phase.replay:
        asks[f"{path}.replay"] = "leave it out"
    if phase.asks_of_labelled:
        asks[f"{path}.loss.rkd_teacher: labels"] = "take base"
    if phase.loss.get("false_negative_margin") is not None:
        asks[f"{path}.loss.false_negative_margin"] = "leave it out"
    task = path.removeprefix("adapters.")
    for name in phase.data:
        spec = recipe.data_sets[name]
        if spec.kind == "texts" or (task == "clustering" and spec.kind not in LABELLED):
            asks[f"{path}.data.{name}: texts without labels"] = "leave them out"
        elif spec.kind not in (*LABELLED, *SCORED) and spec.negatives:
            told = "name your own (columns negative_1, ...), or none"
            asks[f"data_sets.{name}.negatives"] = told
    unscored = any(recipe.data_sets[name].kind not in SCORED for name in phase.data)
    distils = path in recipe.base_phases or task == "retrieval"
    distils |= task == "text-matching" and unscored
    if distils and phase.loss.get("distill_weight") != 0:
        asks[f"{path}.loss: its distillation"] = f"set {path}.loss: {{distill_weight: 0}}"
    if asks:
        what, instead = next(iter(asks.items()))
        raise RecipeError(
            f"{what} needs a teacher's vectors, and the recipe has no teacher; name one, or "
            f"{instead}"
        )


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


TAKES = {
    "stage1": ("pairs", "texts", "long"),
    "long": ("long", "pairs", "texts"),
    "adapters.retrieval": ("pairs", "long"),
    "adapters.text-matching": ("scored", "synset_pairs", "pairs"),
    "adapters.clustering": ("texts", "pairs"),
    "adapters.classification": ("labelled", "paragraphs", "pairs"),
}
"""Phase -> the kinds of data sets that its loss is made for."""


def _check_kinds(recipe: Recipe, path: str, phase: Phase) -> None:
    """A loss of pairs can use no single texts, and none but text-matching's uses scores."""
    for name in phase.data:
        kind = recipe.data_sets[name].kind
        single = kind == "texts" and "texts" not in TAKES[path]
        if single and phase.loss.get("infonce_weight") == 0:  # what is left distils any text
            continue
        if single or (kind in ("scored", "synset_pairs") and kind not in TAKES[path]):
            what = "has single texts" if single else "has scores, which this loss does not read"
            raise RecipeError(
                f"{path}.data.{name}: the set is of kind {kind} and {what}; {path} takes "
                f"{', '.join(TAKES[path])}{f', or its texts as {path}.replay' if single else ''}"
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
