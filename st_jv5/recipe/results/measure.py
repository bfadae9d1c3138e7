"""The evaluation of a run: who is measured on which task."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model

import st_jv5
from st_jv5.evaluation import corpora
from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder, adapter_for
from st_jv5.evaluation.near_far import FAR, About, by_family, labels_are_new, near_and_far
from st_jv5.evaluation.own_tasks import Own, OwnTasks, as_file_name, own_tasks
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.files import read_json
from st_jv5.folders.configs import check_task_name
from st_jv5.recipe.config import Recipe
from st_jv5.recipe.context import Run
from st_jv5.recipe.data.halves import halves
from st_jv5.recipe.done import require
from st_jv5.recipe.strict import RecipeError
from st_jv5.task_table import BASE, TASKS, Blend
from st_jv5.teacher.sources import resolve_model

logger = logging.getLogger("st_jv5.recipe")

NOTHING_MEASURED = (
    "Nothing was measured: the recipe says `evaluation: none`, or no data set holds rows out "
    "(`held_out`) and the text of the local tasks is not on this disk."
)
CHANCE, BEFORE, MODEL, TEACHER = "chance", "student before training", "model", "teacher"
START = "start"
"""The base used its own way: its own pooling, prompts and length, all its layers and words. A base
of plain transformers has none; there the student before training is what training began with."""


class ChanceEncoder(AbsEncoder):
    """A random unit vector per text: what a score is worth."""

    def __init__(self, dim: int = 384) -> None:
        self.dim = dim
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": "st_jv5/chance", "revision": str(dim)}
        )

    def describe(self, task_type: str) -> dict[str, Any]:
        """Description for the record of scores."""
        return {
            "adapter": None,
            "prompts": {"query": "", "document": ""},
            "dim": self.dim,
            "precision": "float32",
            "bytes": 4 * self.dim,
            "dtype": "float32",
            "max_tokens": None,
        }

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        texts = [text for batch in inputs for text in batch["text"]]
        rows = np.stack([self._draw(text) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def _draw(self, text: str) -> np.ndarray[Any, Any]:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        return np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)


Split = Literal["test", "validation"]


def chosen_tasks(run: Run, split: Split | None = None) -> list[Any]:
    """The tasks that the recipe names, on its split or another; none where nothing is measured.

    Where it names none: those of the rows that its data sets hold out, and where they hold out
    none, all local tasks, if their text is on this disk.
    """
    wanted = run.recipe.evaluation
    split = split or wanted.split
    if wanted.skip:
        return []
    own = own_tasks_of(run, split)
    local = dict(zip(local_tasks(), local_tasks(split).values(), strict=True))
    names = wanted.tasks or tuple(own)
    if not names and corpora.is_here():
        names = tuple(local)
    if unknown := [name for name in names if name not in own and name not in local]:
        known = ", ".join([*own, *local])
        raise RecipeError(f"evaluation.tasks: unknown {unknown[0]!r}; known: {known}")
    return [own[name] if name in own else local[name]() for name in names]


def own_tasks_of(run: Run, split: Split = "test") -> dict[str, Any]:
    """Name -> task, of the rows that data sets hold out.

    A recipe that chooses on validation scores does so on one half of them, and reports on the
    other; the tasks to choose by are called ``faq (held out, validation)``.
    """
    found: dict[str, Any] = {}
    for name in _held_out(run):
        for task in _made_of(run, name, split).tasks:
            found[task.metadata.name.replace(", validation", "")] = task
    return found


def _held_out(run: Run) -> list[str]:
    """The data sets that hold rows out; those among them that no phase trains on, too."""
    return [name for name, spec in run.recipe.data_sets.items() if spec.held_out]


def _made_of(run: Run, name: str, split: Split) -> OwnTasks:
    def make() -> OwnTasks:
        rows: list[Any] = [*run.held_out(name)]
        if run.recipe.chooses:
            rows = halves(rows)[split == "validation"]
        kind = run.recipe.data_sets[name].kind_of_text
        others = run.rows[name] if name in run.rows else run.read(name)
        part = "held out, validation" if split == "validation" else "held out"
        return own_tasks(name, rows, others, part=part, text_kind=kind)

    return run.once(("own tasks", name, split), make)


def check_held_out(run: Run) -> None:
    """Check that all tasks are known; log what cannot be asked of held-out rows."""
    chosen_tasks(run)
    for name in _held_out(run):
        for told in _made_of(run, name, "test").left_out:
            logger.warning("data_sets.%s", told)


def check_choices(run: Run) -> None:
    """Check that there is a validation task for every setting with several values to choose from.

    Raises:
        RecipeError: Names the setting that has none.
    """
    way_out = "or hold rows of a data set out (data_sets.NAME.held_out)"
    if len(run.recipe.keep or ()) > 1 and not tasks_to_choose_by(run, BASE):
        raise RecipeError(
            f"keep has several to choose among, but there is no task to choose by; name one "
            f"(keep: [0.5]), {way_out}"
        )
    for task, phase in run.recipe.adapters.items():
        if len(phase.strengths) > 1 and not tasks_to_choose_by(run, task):
            raise RecipeError(
                f"adapters.{task}.strengths has several to choose among, but no validation task is "
                f"one of {task}; name one strength (strengths: [1.0]), {way_out} that make such a "
                f"task, or name one in evaluation.tasks"
            )


def tasks_to_choose_by(run: Run, task: str) -> list[Any]:
    """The validation tasks that are routed to an adapter; all of them for the base."""
    return [
        one
        for one in chosen_tasks(run, "validation")
        if task == BASE or adapter_for(one.metadata.type) == task
    ]


def about_own(run: Run) -> dict[str, About]:
    """What the measured tasks of held-out rows are on."""
    return {
        task.metadata.name: About(task.text_kind, task.labels)
        for task in chosen_tasks(run)
        if isinstance(task, Own)
    }


def near_and_far_of(recipe: Recipe, tasks: Sequence[Any]) -> dict[str, list[str]]:
    """The names of tasks of each side; one of held-out rows is as near as their kind of text."""
    own = {one.metadata.name: one.text_kind for one in tasks if isinstance(one, Own)}
    return near_and_far([one.metadata.name for one in tasks], recipe.text_kinds, own)


def without_far(run: Run) -> str:
    """A warning where all chosen tasks are on text like the training text; else nothing.

    No data set is read for it: the plan asks, too, and downloads nothing.
    """
    recipe, known = run.recipe, local_tasks()
    if recipe.evaluation.skip:
        return ""
    asked = recipe.evaluation.tasks
    own = {
        spec.kind_of_text
        for name, spec in recipe.data_sets.items()
        if spec.held_out and (not asked or _is_asked(name, asked))
    }
    local = [name for name in asked if name in known]
    if not asked and not own and corpora.is_here():
        local = list(known)
    is_far = own - recipe.text_kinds or near_and_far(local, recipe.text_kinds)[FAR]
    if is_far or not (own or local):
        return ""
    kinds = ", ".join(sorted(recipe.text_kinds))
    among = "evaluation.tasks" if asked else "the tasks of held-out rows"
    return (
        f"no far task among {among}: all are on text like the training text ({kinds}); "
        f"whether training hurts on other text will not be known"
    )


def _is_asked(data_set: str, tasks: Sequence[str]) -> bool:
    """Whether tasks of a data set's held-out rows are among some by name."""
    return any(task.startswith(f"{as_file_name(data_set)} (held out") for task in tasks)


def check_beside(run: Run) -> None:
    """The names of other models and of blends are folders, and no one else's."""
    taken = {START, CHANCE, BEFORE, MODEL, BASE, *TASKS, *teacher_names(run)}
    evaluation = run.recipe.evaluation
    for setting, labels in (("beside", evaluation.beside), ("blends", evaluation.blends)):
        for label in labels:
            if label in taken or Path(label).name != label:
                raise RecipeError(
                    f"evaluation.{setting}: {label!r} is used already, or cannot be a folder's name"
                )
            taken.add(label)
    for name, weights in evaluation.blends.items():
        try:
            check_task_name(name)
        except ValueError as error:
            told = f"evaluation.blends: {name!r} cannot be the name of an adapter: {error}"
            raise RecipeError(told) from error
        try:
            worth = any(Blend(weights).values())
        except ValueError as error:
            raise RecipeError(f"evaluation.blends.{name}: {error}") from error
        if not worth:
            raise RecipeError(f"evaluation.blends.{name}: all weights are 0, which is the base")


def measure(run: Run) -> None:
    """Write ``evaluation/<who>/results.json``, if anything is to be measured.

    ``model`` has every adapter and the base on every task, and each adapter's own tasks at all
    dims and precisions.
    """
    folder = run.folder / "evaluation"
    model = SentenceTransformer(str(require(run.folder / "model", "model")))
    tasks = chosen_tasks(run)
    if not tasks:
        logger.info("%s", NOTHING_MEASURED)
        return

    calibration = calibration_of(run) if "int8" in run.recipe.evaluation.precisions else ()

    def score(who: str, encoder: Any, settings: Settings | None = None) -> None:
        evaluate(
            encoder,
            tasks,
            folder / who,
            settings,
            label=who,
            calibration=calibration,
            command=run.command,
        )

    with run.forwards():
        score(CHANCE, ChanceEncoder())
        if (base := start_model(run)) is not None:
            score(START, MTEBEncoder(base, remember=True))
        if not run.recipe.student.model:  # else it is the start
            score(BEFORE, MTEBEncoder(run.new_student(), remember=True))
        wanted = run.recipe.evaluation
        for who, name in wanted.beside.items():
            score(who, MTEBEncoder(SentenceTransformer(resolve_model(name)), remember=True))
        for number, (who, spec) in enumerate(zip(teacher_names(run), run.teachers, strict=True)):
            if spec.endpoint is None:
                score(who, MTEBEncoder(run.teacher(number), remember=True))
        width = model[0].get_embedding_dimension()
        dims = {width, *(wanted.dims or model[0].matryoshka_dims)}
        settings = Settings("all", tuple(sorted(dims)), wanted.precisions)
        score(MODEL, MTEBEncoder(model, remember=True), settings)
        for name, weights in wanted.blends.items():
            blended = SentenceTransformer(str(run.folder / "model"))
            st_jv5.blend_tasks(blended, name, weights)
            score(name, MTEBEncoder(blended, remember=True), Settings(name))


def validation_means(
    run: Run, model: SentenceTransformer, task: str, folder: Path
) -> dict[str, float]:
    """Mean scores in percent on the validation split, to choose by.

    Args:
        run: Its recipe names the tasks.
        model: An st_jv5 model.
        task: An adapter, scored on the tasks that are routed to it, without those whose labels it
            was trained on, if there are others; or the base, scored on all.
        folder: Folder of the record.

    Returns:
        ``near``, ``far`` (whichever there are), and ``both``: the mean of the two; of a base also
        the mean of each family of far tasks, such as ``far clustering``.

    Raises:
        ValueError: No validation task is routed to the adapter.
    """
    tasks = tasks_to_choose_by(run, task)
    if not tasks:
        raise ValueError(f"no validation task belongs to {task}")
    if task != BASE:
        told = [t for t in tasks if labels_are_new(t.metadata.name, run.labels) is False]
        tasks = [one for one in tasks if one not in told] or told
    with run.forwards():
        rows = evaluate(
            MTEBEncoder(model, remember=True), tasks, folder, Settings(task), label=folder.name
        )
    scores = {str(row["task"]): 100 * float(row["main_score"]) for row in rows}
    groups = near_and_far_of(run.recipe, tasks)
    means = {
        side: float(np.mean([scores[name] for name in names]))
        for side, names in groups.items()
        if names
    }
    means |= {"both": float(np.mean([*means.values()]))}
    if task == BASE:
        types = {one.metadata.name: one.metadata.type for one in tasks}
        for (family, side), names in by_family(groups, types).items():
            if side == FAR and names:
                means[f"{FAR} {family}"] = float(np.mean([scores[name] for name in names]))
    return means


def start_model(run: Run) -> SentenceTransformer | None:
    """The base as its own users load it; None where it says no pooling of its own.

    A finished model is the start itself, each task with the adapter that it had.
    """
    if run.recipe.student.model:
        return SentenceTransformer(str(require(run.base, "stage1")))
    base = resolve_model(run.recipe.student.base)
    return SentenceTransformer(base) if is_sentence_transformer_model(base) else None


def records_of(run: Run) -> dict[str, dict[str, Row]]:
    """Who was measured -> task -> row: chance, the start, the student before, base, ..."""
    folder = run.folder / "evaluation"

    def rows(who: str, adapter: str | None = None) -> dict[str, Row]:
        return main_rows(read_record(folder / who)["results"], adapter)

    return {
        CHANCE: rows(CHANCE),
        **({START: rows(START)} if (folder / START).exists() else {}),
        **({BEFORE: rows(BEFORE)} if (folder / BEFORE).exists() else {}),
        **{who: rows(who) for who in run.recipe.evaluation.beside},
        **{adapter: rows(MODEL, adapter) for adapter in (BASE, *adapters_of(run))},
        **{name: rows(name) for name in run.recipe.evaluation.blends},
        **{who: rows(who) for who in teacher_names(run) if (folder / who).exists()},
    }


def adapters_of(run: Run) -> list[str]:
    """The adapters of the result, those among them that a finished model had."""
    if not run.recipe.student.model:
        return [*run.recipe.adapters]
    return [*read_json(run.folder / "model" / "st_jv5.json")["tasks"]]


def calibration_of(run: Run) -> list[str]:
    """Texts for int8's ranges: beginnings of those that an own recipe trains on."""
    return [
        text[:100]
        for name, spec in run.used_sets.items()
        if spec.held_out
        for role in run.rows[name].roles
        for text in islice(run.rows[name].column(role), 64)
        if text
    ]


def teacher_names(run: Run) -> list[str]:
    """A name for each teacher's row."""
    count = len(run.teachers)
    return [TEACHER, *(f"{TEACHER} {number}" for number in range(2, count + 1))][:count]
