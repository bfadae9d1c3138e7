"""Distil a large text-embedding model into a small one with four LoRA task adapters.

Importing this package makes its module classes known to sentence-transformers, so that a saved
model loads as plain ``SentenceTransformer(path)``. It imports neither torch nor
sentence-transformers: each name is imported from its module when it is first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from st_jv5.lazy import make_lazy, when_imported

if TYPE_CHECKING:  # what type checkers and editors see; _NAMES has the same
    from st_jv5.adapter_file import Adapter
    from st_jv5.adapters import (
        add_task,
        average_adapters,
        blend_tasks,
        merge_task,
        merged,
        put_task,
        remove_task,
        take_task,
        tasks,
        train_task,
    )
    from st_jv5.choosing import choose_task
    from st_jv5.data_sets import trainer_prompts
    from st_jv5.encoding import encode, encode_all_tasks, encode_mixed
    from st_jv5.interpolation import interpolate
    from st_jv5.jina import load_jina_v5
    from st_jv5.losses import (
        CompositeLoss,
        CoSENTDistillLoss,
        CoSENTLoss,
        GORLoss,
        InfoNCELoss,
        ProjectedCosineDistillLoss,
        RelationalKDLoss,
        Schedule,
        classification_loss,
        clustering_loss,
        retrieval_loss,
        text_matching_loss,
    )
    from st_jv5.modules import AdapterRouter, LastTokenPooling, MatryoshkaTruncate, TokenPooling
    from st_jv5.projection import Projection, fit_projection
    from st_jv5.resuming import last_checkpoint
    from st_jv5.sampling import weighted
    from st_jv5.student import new_student
    from st_jv5.teacher.fill import fill
    from st_jv5.teacher.store import TeacherStore
    from st_jv5.trainer import AdapterTrainer

__all__ = [
    "Adapter",
    "AdapterRouter",
    "AdapterTrainer",
    "CoSENTDistillLoss",
    "CoSENTLoss",
    "CompositeLoss",
    "GORLoss",
    "InfoNCELoss",
    "LastTokenPooling",
    "MatryoshkaTruncate",
    "ProjectedCosineDistillLoss",
    "Projection",
    "RelationalKDLoss",
    "Schedule",
    "TeacherStore",
    "TokenPooling",
    "add_task",
    "average_adapters",
    "blend_tasks",
    "choose_task",
    "classification_loss",
    "clustering_loss",
    "encode",
    "encode_all_tasks",
    "encode_mixed",
    "fill",
    "fit_projection",
    "interpolate",
    "last_checkpoint",
    "load_jina_v5",
    "merge_task",
    "merged",
    "new_student",
    "put_task",
    "remove_task",
    "retrieval_loss",
    "take_task",
    "tasks",
    "text_matching_loss",
    "train_task",
    "trainer_prompts",
    "weighted",
]

__version__ = "0.1.0"

_NAMES = {
    "adapter_file": ("Adapter",),
    "adapters": (
        "add_task",
        "average_adapters",
        "blend_tasks",
        "merge_task",
        "merged",
        "put_task",
        "remove_task",
        "take_task",
        "tasks",
        "train_task",
    ),
    "choosing": ("choose_task",),
    "data_sets": ("trainer_prompts",),
    "encoding": ("encode", "encode_all_tasks", "encode_mixed"),
    "interpolation": ("interpolate",),
    "jina": ("load_jina_v5",),
    "losses": (
        "CompositeLoss",
        "CoSENTDistillLoss",
        "CoSENTLoss",
        "GORLoss",
        "InfoNCELoss",
        "ProjectedCosineDistillLoss",
        "RelationalKDLoss",
        "Schedule",
        "classification_loss",
        "clustering_loss",
        "retrieval_loss",
        "text_matching_loss",
    ),
    "modules": ("AdapterRouter", "LastTokenPooling", "MatryoshkaTruncate", "TokenPooling"),
    "projection": ("Projection", "fit_projection"),
    "resuming": ("last_checkpoint",),
    "sampling": ("weighted",),
    "student": ("new_student",),
    "teacher.fill": ("fill",),
    "teacher.store": ("TeacherStore",),
    "trainer": ("AdapterTrainer",),
}

make_lazy(__name__, _NAMES)


_LOADABLE = (
    "st_jv5.modules.adapter_router.AdapterRouter",
    "st_jv5.modules.matryoshka.MatryoshkaTruncate",
    "st_jv5.modules.pooling.LastTokenPooling",
    "st_jv5.modules.pooling.TokenPooling",
)


class _ModuleClasses(dict[str, Any]):
    """Class as ``modules.json`` names it -> class; None is imported when a model names it."""

    def __getitem__(self, reference: str) -> Any:
        found = super().__getitem__(reference)
        if found is None:
            module, _, name = reference.rpartition(".")
            found = self[reference] = getattr(import_module(module), name)
        return found

    def get(self, reference: str, default: Any = None) -> Any:
        return self[reference] if reference in self else default  # noqa: SIM401 (it is get)


def _make_modules_loadable() -> None:
    from sentence_transformers.base.model import BaseModel

    known = getattr(BaseModel, "_module_classes", None)
    if not isinstance(known, dict):
        logging.getLogger(__name__).warning(
            "this sentence-transformers takes no module classes from plugins; load st_jv5 models "
            "with SentenceTransformer(path, trust_remote_code=True)"
        )
        return
    BaseModel._module_classes = _ModuleClasses({**known, **dict.fromkeys(_LOADABLE)})


when_imported("sentence_transformers", _make_modules_loadable)
