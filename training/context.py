"""What the stages of a run share: its settings, models, store, and marks of what is done."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import set_seed

import st_jv5
from st_jv5.files import read_json, write_json
from st_jv5.teacher import TeacherStore
from training.config import Recipe, RecipeError
from training.data import Rows, read_rows


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


# ------------------------------------------------------------------------- what is done


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
