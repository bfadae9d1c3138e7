"""Relational distillation: keep the distances between texts."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5 import functional as F
from st_jv5.losses.embed import EmbeddingLoss, base_vectors
from st_jv5.losses.labels import present, teacher_vectors
from st_jv5.vector_source import VectorRows

Teacher = Literal["base", "labels"]


class RelationalKDLoss(EmbeddingLoss):
    r"""Keep the distances between all texts of the batch as they are between the teacher's vectors.

    Args:
        model: The model being trained.
        teacher: ``"base"``, as in the paper: the backbone without adapter, run without gradients on
            the same batch. ``"labels"``: the vectors that the labels hold.
        include_diagonal: Whether the mean distances include the zero distance of each text to
            itself (the paper does not say; True is our choice).
        store: The teacher store that int labels are rows of (``teacher="labels"``).

    Inputs:
        any number of text columns, taken together as ``M = B x columns`` texts; for
        ``teacher="labels"`` only the columns and rows that have vectors.

    Returns:
        ``{"rkd": scalar >= 0}``.

    Example:
        >>> loss = RelationalKDLoss(student, teacher="labels")
        >>> rows = torch.eye(4)
        >>> loss.compute_loss_from_embeddings([rows], rows[:, None])["rkd"].item()
        0.0

    References:
        Eq. 8 of arXiv:2602.15547. sentence-transformers has no such loss.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        teacher: Teacher = "base",
        *,
        include_diagonal: bool = True,
        store: VectorRows | None = None,
    ) -> None:
        super().__init__()
        if teacher not in get_args(Teacher):
            raise ValueError(f"teacher must be one of {get_args(Teacher)}, not {teacher!r}")
        self.model = model
        self.teacher = teacher
        self.include_diagonal = include_diagonal
        self.store = store

    def prepare(
        self, columns: list[dict[str, Any]] | None, labels: Tensor | None
    ) -> dict[str, Tensor | None]:
        """The vectors whose distances are to be kept."""
        if self.teacher == "base" and columns is not None:
            return {"labels": base_vectors(self.model, columns)}
        device = None if labels is None else labels.device
        return {"labels": teacher_vectors(labels, self.store, device)}

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; for ``teacher="base"`` the labels are the base's ``(B, C, D)`` vectors."""
        vectors = teacher_vectors(labels, self.store, embeddings[0].device)
        columns = min(vectors.shape[1], len(embeddings))
        there = present(vectors[:, :columns])
        student = torch.stack(embeddings[:columns], dim=1)[there]
        teacher = vectors[:, :columns][there]
        return {"rkd": F.relational_distance(student, teacher, self.include_diagonal)}

    def get_config_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "include_diagonal": self.include_diagonal}
