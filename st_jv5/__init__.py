"""Distil a large text-embedding model into a small one with four LoRA task adapters.

An *st_jv5 model* is a SentenceTransformer whose first module is an ``AdapterRouter``: what
``new_student`` and ``load_jina_v5`` return, and what is loaded from a folder that st_jv5 saved.
Importing this package makes its module classes known to sentence-transformers, so that such a
folder loads as plain ``SentenceTransformer(path)``. It imports neither torch nor
sentence-transformers: each name is imported from its module when it is first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from st_jv5.importing import when_imported

if TYPE_CHECKING:  # what type checkers and editors see; _NAMES has the same
    from st_jv5.adapters import add_task, blend_tasks, merge_task, tasks, train_task
    from st_jv5.choosing import choose_task
    from st_jv5.encoding import encode, encode_all_tasks, encode_mixed
    from st_jv5.heads import fit_heads
    from st_jv5.jina import load_jina_v5
    from st_jv5.losses import (
        CompositeLoss,
        CoSENTDistillLoss,
        GORLoss,
        ProjectedCosineDistillLoss,
        RelationalKDLoss,
    )
    from st_jv5.modules import AdapterRouter, LastTokenPooling, MatryoshkaTruncate
    from st_jv5.query_table import fit_query_encoder, fit_query_table
    from st_jv5.rotation import rotate
    from st_jv5.student import new_student
    from st_jv5.trainer import AdapterTrainer

__all__ = [
    "AdapterRouter",
    "AdapterTrainer",
    "CoSENTDistillLoss",
    "CompositeLoss",
    "GORLoss",
    "LastTokenPooling",
    "MatryoshkaTruncate",
    "ProjectedCosineDistillLoss",
    "RelationalKDLoss",
    "add_task",
    "blend_tasks",
    "choose_task",
    "encode",
    "encode_all_tasks",
    "encode_mixed",
    "fit_query_encoder",
    "fit_query_table",
    "fit_heads",
    "load_jina_v5",
    "merge_task",
    "new_student",
    "rotate",
    "tasks",
    "train_task",
]

__version__ = "0.1.0"

_NAMES = {
    "adapters": (
        "add_task",
        "blend_tasks",
        "merge_task",
        "tasks",
        "train_task",
    ),
    "choosing": ("choose_task",),
    "encoding": (
        "encode",
        "encode_all_tasks",
        "encode_mixed",
    ),
    "heads": ("fit_heads",),
    "jina": ("load_jina_v5",),
    "losses": (
        "CompositeLoss",
        "CoSENTDistillLoss",
        "GORLoss",
        "ProjectedCosineDistillLoss",
        "RelationalKDLoss",
    ),
    "modules": (
        "AdapterRouter",
        "LastTokenPooling",
        "MatryoshkaTruncate",
    ),
    "query_table": ("fit_query_encoder", "fit_query_table"),
    "rotation": ("rotate",),
    "student": ("new_student",),
    "trainer": ("AdapterTrainer",),
}

_HOMES = {name: f"st_jv5.{home}" for home, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


_LOADABLE = (
    "st_jv5.modules.adapter_router.AdapterRouter",
    "st_jv5.modules.heads.Heads",
    "st_jv5.modules.matryoshka.MatryoshkaTruncate",
    "st_jv5.modules.pooling.LastTokenPooling",
    "st_jv5.modules.pooling.TokenPooling",
    "st_jv5.modules.rotation.Rotation",
)


class _ModuleClasses(dict[str, Any]):
    """Name of a class in ``modules.json`` -> class; None is imported when a model names it."""

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
