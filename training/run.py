"""Run a recipe: teacher -> stage 1 -> adapters -> one model -> evaluation -> report.

    python -m training.run training/recipes/demo.yaml
    python -m training.run training/recipes/demo.yaml --set stage1.steps=50 --only stage1

Each stage leaves its result in the output folder and is skipped when it is there; a stage that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import set_seed

import st_jv5
from st_jv5.tasks import BASE
from st_jv5.teacher.sources import resolve_model
from training.config import Recipe, RecipeError, load_recipe
from training.context import (
    Run,
    done,
    mark_done,
    record_settings,
    require,
    save_whole,
)
from training.teach import teach
from training.train import train

logger = logging.getLogger("training")

STAGES = ("teacher", "stage1", "adapters", "model", "evaluation", "report")

# ---------------------------------------------------------------------------------------- stages


def upstream(recipe: Recipe) -> dict[str, Any]:
    """The settings that stage 1 depends on; the adapters depend on these and their own."""
    tree = asdict(recipe)
    keys = ("student", "data_sets", "stage1", "seed", "precision")
    where = ("endpoint", "device", "store", "shards")  # how the vectors come, not what they are
    teachers = [
        {key: value for key, value in teacher.items() if key not in where}
        for teacher in (tree["teacher"], *tree["more_teachers"])
    ]
    return {"teachers": teachers, **{key: tree[key] for key in keys}}


def preflight(run: Run, stages: Sequence[str]) -> None:
    """Find what cannot work before any long work starts."""
    local = [spec.model for spec in run.teachers if spec.endpoint is None]
    try:
        for name in (*local, run.recipe.student.base):
            resolve_model(name)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if {"teacher", "stage1", "adapters"} & set(stages):
        _ = run.rows
    if "evaluation" in stages:
        from training.measure import chosen_tasks

        chosen_tasks(run)
    if "stage1" in stages and not (run.folder / "stage1" / "done.json").exists():
        try:
            run.new_student()
        except ValueError as error:
            raise RecipeError(f"student: {error}") from error


def run_teacher(run: Run) -> None:
    """Embed every text that is distilled or mined, once."""
    teach(run)


def run_stage1(run: Run) -> None:
    """Distil the whole backbone."""
    folder, settings = run.folder / "stage1", upstream(run.recipe)
    if done(folder, settings):
        return
    student = run.new_student()
    train(run, student, BASE, run.recipe.stage1, folder / "checkpoints")
    save_whole(student, folder / "model")
    mark_done(folder, settings)


def run_adapters(run: Run) -> None:
    """Train each adapter on the frozen base, on its own."""
    for task, phase in run.recipe.adapters.items():
        folder = run.folder / "adapters" / task
        settings = {**upstream(run.recipe), "adapter": asdict(phase)}
        if done(folder, settings):
            continue
        student = SentenceTransformer(str(require(run.folder / "stage1" / "model", "stage1")))
        set_seed(run.recipe.seed)
        st_jv5.add_task(student, task, rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout)
        checkpoints = folder / "checkpoints"
        train(run, student, task, phase, checkpoints)
        st_jv5.take_task(student, task, folder / "last")
        chosen = st_jv5.Adapter.load(folder / "last")
        lost = 0.0
        if phase.average:
            steps = [checkpoints / f"checkpoint-{s}" / "adapters" / task for s in phase.average]
            chosen, lost = st_jv5.average_adapters([*steps, folder / "last"])
        chosen.save(folder / "adapter")
        mark_done(folder, settings, averaged=[*phase.average], lost=lost)


def run_model(run: Run) -> None:
    """Put the adapters on the frozen base: the one folder."""
    folder = run.folder / "model"
    settings = {
        **upstream(run.recipe),
        "adapters": {k: asdict(v) for k, v in run.recipe.adapters.items()},
    }
    marker = run.folder / "model.done"
    if done(marker, settings):
        return
    model = SentenceTransformer(str(require(run.folder / "stage1" / "model", "stage1")))
    for task in run.recipe.adapters:
        st_jv5.put_task(model, require(run.folder / "adapters" / task / "adapter", "adapters"))
    save_whole(model, folder)
    mark_done(marker, settings)


def run_evaluation(run: Run) -> None:
    """Every adapter, the base, the student before training, the teacher and chance on all tasks."""
    from training.measure import measure  # needs the extra `eval`

    measure(run)


def run_report(run: Run) -> None:
    """Table, plots and model card from the run's records."""
    from training.report import report  # needs the extra `eval`

    report(run)


# ------------------------------------------------------------------------------------------ main


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", help="a YAML file, such as training/recipes/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--only", choices=STAGES, help="run this stage alone")
    parser.add_argument(
        "--report-to", nargs="+", default=["none"], help="tensorboard, trackio, wandb, ..."
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        run = Run(load_recipe(args.recipe, args.set), tuple(args.report_to))
        record_settings(run)
        stages: dict[str, Callable[[Run], None]] = {
            "teacher": run_teacher,
            "stage1": run_stage1,
            "adapters": run_adapters,
            "model": run_model,
            "evaluation": run_evaluation,
            "report": run_report,
        }
        chosen = STAGES if args.only is None else (args.only,)
        preflight(run, chosen)
        for name in chosen:
            started = time.time()
            stages[name](run)
            logger.info("%s: %.0f s", name, time.time() - started)
    except RecipeError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    main()
