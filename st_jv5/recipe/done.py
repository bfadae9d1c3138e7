"""What is done: stages leave a marker, models are whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_jv5.files import read_json, write_json
from st_jv5.recipe.config import fingerprint
from st_jv5.recipe.strict import RecipeError


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
