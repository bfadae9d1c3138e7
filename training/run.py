"""Run a recipe: teacher -> stage 1 -> adapters -> one model -> evaluation -> report.

    python -m training.run training/recipes/demo.yaml
    python -m training.run training/recipes/demo.yaml --set stage1.steps=50 --only stage1

Each stage leaves its result in the output folder and is skipped when it is there; a stage that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from transformers.trainer_utils import get_last_checkpoint, set_seed

import st_jv5
from st_jv5.files import read_json, write_json
from st_jv5.losses import (
    CompositeLoss,
    classification_loss,
    clustering_loss,
    retrieval_loss,
    text_matching_loss,
)
from st_jv5.sampling import weighted
from st_jv5.tasks import BASE
from st_jv5.teacher import TeacherStore, fill
from st_jv5.trainer import AdapterTrainer
from training.config import Phase, Recipe, RecipeError, load_recipe
from training.data import Rows, read_rows, teacher_texts, training_set

logger = logging.getLogger("training")

STAGES = ("teacher", "stage1", "adapters", "model", "evaluation", "report")

LOSSES: dict[str, Callable[..., CompositeLoss]] = {
    BASE: clustering_loss,  # stage 1 is the same distillation
    "retrieval": retrieval_loss,
    "text-matching": text_matching_loss,
    "clustering": clustering_loss,
    "classification": classification_loss,
}


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_model(name: str) -> str:
    """A Hub id or folder as it is; ``package:NAME/FOLDER`` as the folder inside the package."""
    if not name.startswith("package:"):
        return name
    package, _, folder = name.removeprefix("package:").partition("/")
    try:
        return str(files(package) / folder)
    except ModuleNotFoundError as error:
        raise RecipeError(f"{name}: pip install {package.replace('_', '-')}") from error


@dataclass
class Run:
    """One run of a recipe: its settings, and what its stages share."""

    recipe: Recipe
    report_to: tuple[str, ...] = ("none",)
    """The host's trackers: tensorboard, trackio, wandb, ..."""

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def bfloat16(self) -> bool:
        asked = self.recipe.precision
        return native_bfloat16() if asked == "auto" else asked == "bfloat16"

    def forwards(self) -> AbstractContextManager[Any]:
        """The precision of forwards outside the trainer."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Data set -> its rows."""
        return {
            name: read_rows(name, spec, self.recipe.seed)
            for name, spec in self.recipe.data_sets.items()
        }

    @cached_property
    def teacher(self) -> SentenceTransformer:
        spec = self.recipe.teacher
        model = SentenceTransformer(resolve_model(spec.model), revision=spec.revision or None)
        model.max_seq_length = min(spec.max_tokens, model.max_seq_length or spec.max_tokens)
        return model

    @cached_property
    def store(self) -> TeacherStore:
        spec = self.recipe.teacher
        folder = self.folder / spec.store
        return TeacherStore.open(folder, create=True).space(
            spec.model,
            spec.revision,
            spec.prompt,
            spec.max_tokens,
            dim=self.teacher.get_embedding_dimension(),
            dtype=spec.store_dtype,
        )

    def new_student(self) -> SentenceTransformer:
        spec = self.recipe.student
        set_seed(self.recipe.seed)
        student = st_jv5.new_student(
            resolve_model(spec.base),
            layers=spec.layers
            if isinstance(spec.layers, int) or spec.layers is None
            else list(spec.layers),
            append_eos=spec.append_eos,
            matryoshka_dims=spec.matryoshka_dims or None,
        )
        student.max_seq_length = min(spec.max_tokens, student.max_seq_length)
        return student


# ---------------------------------------------------------------------------------------- stages


def done(folder: Path, settings: Any) -> bool:
    """Whether a stage's result is there; an error if it was made with other settings."""
    marker = folder / "done.json"
    if not marker.exists():
        return False
    if read_json(marker)["fingerprint"] != fingerprint(settings):
        raise RecipeError(
            f"{folder} was made with other settings; remove it, or choose another output "
            f"(--set output=...)"
        )
    return True


def mark_done(folder: Path, settings: Any, **record: Any) -> None:
    """Say that a stage's result is whole."""
    write_json(folder / "done.json", {"fingerprint": fingerprint(settings), **record})


def fingerprint(settings: Any) -> str:
    """Hash of plain settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def upstream(recipe: Recipe) -> dict[str, Any]:
    """The settings that stage 1 depends on; the adapters depend on these and their own."""
    tree = asdict(recipe)
    keys = ("teacher", "student", "data_sets", "stage1", "seed", "precision")
    return {key: tree[key] for key in keys}


def preflight(run: Run, stages: Sequence[str]) -> None:
    """Find what cannot work before any long work starts."""
    for name in (run.recipe.teacher.model, run.recipe.student.base):
        resolve_model(name)
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
    texts = [
        text
        for name, spec in run.recipe.data_sets.items()
        for text in teacher_texts(spec, run.rows[name])
    ]
    with run.forwards():
        computed = fill(run.store, run.teacher, texts)
    logger.info("teacher: %d texts, %d of them new", len(set(texts)), computed)


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
    from training.measure import measure

    measure(run)


def run_report(run: Run) -> None:
    """Table, plots and model card from the run's records."""
    from training.report import report

    report(run)


def require(path: Path, stage: str) -> Path:
    """A file or folder of an earlier stage."""
    if not path.exists():
        raise RecipeError(f"{path} is missing; run the stage {stage!r} first")
    return path


def save_whole(model: SentenceTransformer, folder: Path) -> None:
    """Save a model beside its place, then move it there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), create_model_card=False)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


# -------------------------------------------------------------------------------------- training


def train(
    run: Run, student: SentenceTransformer, task: str, phase: Phase, checkpoints: Path
) -> None:
    """Run the trainer for one phase, going on from its last checkpoint if there is one."""
    seed = run.recipe.seed
    sets: dict[str, Dataset] = {
        name: training_set(name, run.recipe.data_sets[name], run.rows[name], run.store, seed)
        for name in phase.data
    }
    loss = make_loss(run, student, task, phase)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        max_steps=phase.steps,
        per_device_train_batch_size=phase.batch_size,
        learning_rate=phase.learning_rate,
        learning_rate_mapping=(
            {r"^model\.0\.projection\.": phase.projection_learning_rate}
            if phase.projection_learning_rate is not None and projection_learns(loss)
            else {}
        ),
        lr_scheduler_type="linear",
        warmup_steps=phase.warmup_steps,
        weight_decay=phase.weight_decay,
        max_grad_norm=phase.max_grad_norm,
        bf16=run.bfloat16,
        use_cpu=run.device == "cpu",
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=weighted(phase.data),
        dataloader_drop_last=True,
        logging_steps=max(1, phase.steps // 20),
        save_strategy="steps",
        save_steps=phase.checkpoint_steps,
        save_total_limit=None if getattr(phase, "average", ()) else 2,
        report_to=list(run.report_to),
        seed=seed,
    )
    trainer = AdapterTrainer(student, args, tasks=task, train_dataset=DatasetDict(sets), loss=loss)
    started = time.time()
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    write_json(
        checkpoints.parent / "log.json",
        {"seconds": round(time.time() - started, 1), "history": trainer.state.log_history},
    )
    student.eval()


def projection_learns(loss: CompositeLoss) -> bool:
    """Whether a term trains the projection."""
    return any(getattr(term, "train_projection", False) for term in loss.losses.values())


def make_loss(run: Run, student: SentenceTransformer, task: str, phase: Phase) -> CompositeLoss:
    """The task's loss at the student's dims, reading the teacher store."""
    settings: dict[str, Any] = dict(phase.loss)
    if task != "classification":
        settings["store"] = run.store
    loss = LOSSES[task](
        student,
        run.store.dim,
        dims=student[0].matryoshka_dims,
        dim_weights=phase.dim_weights or None,
        **settings,
    )
    if student[0].projection is not None:
        student[0].projection.info = run.store.describe()
    return loss


# ------------------------------------------------------------------------------------------ main


def record_settings(run: Run) -> None:
    """Write the resolved settings, versions, commit and precision beside the results."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = ("st-jv5", "sentence-transformers", "transformers", "peft", "torch", "datasets")
    write_json(
        run.folder / "run.json",
        {
            "recipe": asdict(run.recipe),
            "versions": {name: version(name) for name in packages},
            "python": sys.version.split()[0],
            "commit": commit or None,
            "device": run.device,
            "threads": torch.get_num_threads(),
            "precision": "bfloat16" if run.bfloat16 else "float32",
        },
    )


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
