"""The evaluation of a run: who is measured on which task, at which dims."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from sentence_transformers import SentenceTransformer

import st_jv5
from eval.local_tasks import LOCAL_TASKS
from eval.run_mteb import evaluate
from st_jv5.evaluation import MTEBEncoder
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.tasks import BASE
from training.config import RecipeError
from training.context import Run, require

CHANCE, BEFORE, TEACHER = "chance", "student before training", "teacher"


class ChanceEncoder(AbsEncoder):
    """A random unit vector per text: what a score is worth."""

    def __init__(self, dim: int = 384) -> None:
        self.dim = dim
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": "st_jv5/chance", "revision": str(dim)}
        )

    def describe(self, task_type: str) -> dict[str, Any]:
        """For the record."""
        return {"adapter": None, "dim": self.dim}

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        texts = [text for batch in inputs for text in batch["text"]]
        rows = np.stack([self._draw(text) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def _draw(self, text: str) -> np.ndarray[Any, Any]:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        return np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)


def chosen_tasks(run: Run) -> list[Any]:
    """The recipe's local tasks, made anew: they keep random state."""
    known = {task.metadata.name: task for task in LOCAL_TASKS}
    names = run.recipe.evaluation.tasks or tuple(known)
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(f"evaluation.tasks: unknown {unknown[0]!r}; known: {', '.join(known)}")
    return [known[name]() for name in names]


def measure(run: Run) -> None:
    """Write ``evaluation/<who>/results.json``, and ``<adapter>@<dim>`` for the curve."""
    tasks = chosen_tasks(run)
    folder = run.folder / "evaluation"
    model = SentenceTransformer(str(require(run.folder / "model", "model")))
    with run.forwards():
        evaluate(ChanceEncoder(), tasks, folder / CHANCE, label=CHANCE)
        before = MTEBEncoder(run.new_student(), remember=True)
        evaluate(before, chosen_tasks(run), folder / BEFORE, label=BEFORE)
        for number, (who, spec) in enumerate(zip(teacher_names(run), run.teachers, strict=True)):
            if spec.endpoint is None:
                encoder = MTEBEncoder(run.teacher(number), remember=True)
                evaluate(encoder, chosen_tasks(run), folder / who, label=who)
        routed = MTEBEncoder(model, remember=True)
        for adapter in (BASE, *st_jv5.tasks(model)):
            # Folded into the weights for the length of its evaluation: the same vectors, faster.
            with st_jv5.merged(model, adapter) if adapter != BASE else nullcontext():
                encoder = routed.at(adapter)
                evaluate(encoder, chosen_tasks(run), folder / adapter, label=adapter)
                own = [task for task in chosen_tasks(run) if _curve(task, adapter)]
                for dim in curve_dims(run, model):
                    at = folder / f"{adapter}@{dim}"
                    evaluate(routed.at(adapter, dim), own, at, label=f"{adapter}@{dim}")


def curve_dims(run: Run, model: SentenceTransformer) -> tuple[int, ...]:
    """The dims of the curve, below the full width."""
    dims = run.recipe.evaluation.dims or model[0].matryoshka_dims
    return tuple(dim for dim in dims if dim < model[0].get_embedding_dimension())


def _curve(task: Any, adapter: str) -> bool:
    return adapter_for(task.metadata.type) == adapter


def teacher_names(run: Run) -> list[str]:
    """A name for each teacher's row."""
    count = len(run.teachers)
    return [TEACHER, *(f"{TEACHER} {number}" for number in range(2, count + 1))]


def who_order(run: Run) -> Iterator[str]:
    """The rows of every table, from worst to best on average."""
    yield from (CHANCE, BEFORE, BASE, *run.recipe.adapters, *teacher_names(run))
