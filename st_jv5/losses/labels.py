"""What the one ``label`` column of a batch means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_scores(labels: Tensor | None) -> bool:
    """Whether the labels are one similarity score per row: ``(B,)``, or float ``(B, 1)``."""
    if labels is None:
        return False
    return labels.ndim == 1 or (labels.is_floating_point() and labels.shape[1:] == (1,))


def teacher_vectors(labels: Tensor | None, store: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's vectors of a batch, for its first ``C`` columns.

    Args:
        labels: int ``(B, C)``, rows of the store, -1 where a text has no vector; float
            ``(B, C, E)`` or ``(B, E)``, the vectors themselves (a NaN in one: it is missing).
        store: The :class:`~st_jv5.teacher.TeacherStore` that rows are gathered from, or None.
        like: A student tensor; gives device and dtype.

    Returns:
        vectors ``(B, C, E)``, 0 where missing, and present ``(B, C)``, bool.
    """
    if labels is None:
        raise ValueError(
            "teacher vectors are needed, but the batch has no label column; add rows of a teacher "
            "store (int) or the vectors (float) as the column 'label'"
        )
    if labels.is_floating_point():
        if labels.ndim not in (2, 3):
            raise ValueError(
                f"teacher vectors must be (B, C, E), not {tuple(labels.shape)}; a float per row is "
                f"a score, which distillation cannot use"
            )
        vectors = labels[:, None] if labels.ndim == 2 else labels
        present = ~torch.isnan(vectors).any(dim=-1)
    else:
        if labels.ndim != 2:
            raise ValueError(f"store rows must be (B, C), not {tuple(labels.shape)}")
        if store is None:
            raise ValueError(
                "the labels are rows of a teacher store, but the loss has none; pass store="
            )
        present = labels >= 0
        vectors = store.gather(labels.clamp(min=0).cpu())
    vectors = vectors.to(device=like.device, dtype=like.dtype).detach()
    present = present.to(like.device)
    return torch.where(present[..., None], vectors, torch.zeros_like(vectors)), present
