"""Distil a large text-embedding model into a small one with four LoRA task adapters.

Importing this package makes its module classes known to sentence-transformers, so that a saved
model loads as plain ``SentenceTransformer(path)``.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from sentence_transformers.base.model import BaseModel

from st_jv5.adapter_file import Adapter
from st_jv5.adapters import (
    add_task,
    average_adapters,
    blend_tasks,
    merge_task,
    merged,
    put_task,
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
from st_jv5.teacher import TeacherStore, fill
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
    "retrieval_loss",
    "take_task",
    "tasks",
    "text_matching_loss",
    "train_task",
    "trainer_prompts",
    "weighted",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "evaluation":  # imported when it is used: it needs mteb, the extra `eval`
        return import_module("st_jv5.evaluation")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _make_modules_loadable() -> None:
    classes = {
        f"{module.__module__}.{module.__name__}": module
        for module in (AdapterRouter, LastTokenPooling, TokenPooling, MatryoshkaTruncate)
    }
    known = getattr(BaseModel, "_module_classes", None)
    if isinstance(known, dict):
        known.update(classes)
    else:
        logging.getLogger(__name__).warning(
            "this sentence-transformers takes no module classes from plugins; load st_jv5 models "
            "with SentenceTransformer(path, trust_remote_code=True)"
        )


_make_modules_loadable()
