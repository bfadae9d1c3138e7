"""Embedding distillation through a projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5 import functional as F
from st_jv5.losses.embed import EmbeddingLoss
from st_jv5.losses.labels import present, teacher_vectors
from st_jv5.losses.processes import average_gradients
from st_jv5.projection import Placement, Projection
from st_jv5.vector_source import VectorRows


class ProjectedCosineDistillLoss(EmbeddingLoss):
    r"""Pull the student's vectors, after a projection, towards the teacher's.

    .. math:: L = \sum_{c} \frac{1}{B} \sum_i \left[1 - \cos(\psi(x^c_i), t^c_i)\right]

    over the columns ``c`` that have teacher vectors (queries and positives).

    The projection belongs to the model and is saved and resumed with it. If an st_jv5 model already
    has a projection, it is used; otherwise a new one is created.

    Args:
        model: The student.
        teacher_dim: Width of the teacher's vectors.
        placement: ``"student_up"`` projects the student to the teacher's width, as the paper does;
            ``"teacher_down"`` projects the teacher to the student's width, as in its ablation.
        train_projection: Whether the projection is trained, too, as in the paper's stage 1.
        projection: A projection to use instead of the model's.
        own_map_dims: Matryoshka dims with a separate projection; the others use the first columns
            of W. None: as in the model's projection; none in a new one.
        store: The teacher store that int labels are rows of.

    Inputs:
        text columns; labels int ``(B, C)``, rows of ``store``, -1 for none, or float ``(B, C, E)``.
        Columns after the first ``C`` (negatives) are not distilled.

    Returns:
        ``{"distill": scalar in 0..2C}``. A row without a vector is left out of its column's mean.

    Example:
        >>> loss = ProjectedCosineDistillLoss(student, teacher_dim=384, store=store)
        >>> student[0].projection is loss.projection
        True

    References:
        Eq. 1 of arXiv:2602.15547. Mean over the batch and sum over the columns: the paper's code is
        not published, and a sum over the batch would swamp stage 2's weights. The projection's
        input are unit vectors (our choice). Differs from the stock ``EmbedDistillLoss``, which
        averages over columns, cannot skip rows and keeps the projection out of checkpoints.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        teacher_dim: int,
        *,
        placement: Placement = "student_up",
        train_projection: bool = True,
        projection: Projection | None = None,
        store: VectorRows | None = None,
        own_map_dims: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.store = store
        student_dim = model.get_embedding_dimension()
        own = getattr(model[0], "projection", None)
        chosen = projection or own
        if chosen is None:
            chosen = Projection(
                student_dim, teacher_dim, placement=placement, own_map_dims=own_map_dims or ()
            ).to(F.wide(model.dtype))
        if own_map_dims is None:
            own_map_dims = chosen.own_map_dims
        asked = (student_dim, teacher_dim, placement, tuple(sorted(own_map_dims)))
        got = (chosen.student_dim, chosen.teacher_dim, chosen.placement, chosen.own_map_dims)
        if got != asked:
            raise ValueError(
                f"the model's projection is {_described(*got)}, but {_described(*asked)} is "
                f"needed; drop the old one with model[0].projection = None"
            )
        self.projection = chosen.to(model.device, F.wide(chosen.linear.weight.dtype))
        if hasattr(model[0], "projection"):
            model[0].projection = self.projection
        average_gradients(self.projection, model)
        self.projection.requires_grad_(train_projection)
        self.train_projection = train_projection

    def prepare(
        self, columns: list[dict[str, Any]] | None, labels: Tensor | None
    ) -> dict[str, Tensor | None]:
        """The teacher's vectors, gathered once for all dims."""
        return {"labels": teacher_vectors(labels, self.store, self.projection.linear.weight.device)}

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, d)`` per column, ``d`` may be cut."""
        vectors = teacher_vectors(labels, self.store, embeddings[0].device)
        if vectors.shape[1] > len(embeddings):
            raise ValueError(
                f"labels are for {vectors.shape[1]} columns, but the batch has {len(embeddings)}"
            )
        total = embeddings[0].new_zeros(())
        for student, teacher in zip(embeddings, vectors.unbind(dim=1), strict=False):
            total = total + self._mean_distance(student, teacher)
        return {"distill": total}

    def _mean_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        there = present(teacher)

        def part(begin: int, end: int) -> Tensor:
            rows = slice(begin, end)
            known = teacher[rows].masked_fill(~there[rows, None], 0.0)
            pair = self.projection(student[rows], known.to(student.dtype))
            return torch.where(there[rows], F.cosine_distance(*pair), 0.0).sum()

        width = self.projection.teacher_dim
        parts = F.in_row_chunks(part, len(student), width, device=student.device)
        return F.sum_of(parts) / there.sum().clamp(min=1)

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "teacher_dim": self.projection.teacher_dim,
            "placement": self.projection.placement,
            "train_projection": self.train_projection,
            "own_map_dims": list(self.projection.own_map_dims),
        }


def _described(student: int, teacher: int, placement: str, own_map_dims: Sequence[int]) -> str:
    own = f", own maps at {list(own_map_dims)}" if own_map_dims else ""
    return f"{student} -> {teacher} {placement}{own}"
